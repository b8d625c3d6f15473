"""The one room that knows every other: configurations -> objects -> results."""
