"""Vision models and text models alone, from which a joined reference is made."""
