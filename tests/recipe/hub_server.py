"""A stand-in for the Hugging Face Hub: repositories are folders, commits are written whole."""

import base64
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Hub:
    """What was asked, and the folder in which `OWNER/NAME` is a repository.

    `refuses` is a part of the path of requests that are refused; `created` are the bodies of
    requests for repositories, `tokens` what requests were authorised by.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.refuses: str | None = None
        self.created: list[dict] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def commit(self, repository: str, lines: list[dict]) -> None:
        for line in lines:
            if line["key"] == "file":
                path = self.folder / repository / line["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(line["value"]["content"]))


def handler(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content, status=200):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.tokens.add(self.headers.get("Authorization"))
            if hub.refuses is not None and hub.refuses in self.path:
                self.answer({"error": f"no, {self.headers.get('Authorization')}"}, status=403)
                return
            if self.path == "/api/repos/create":
                made = json.loads(body)
                hub.created.append(made)
                self.answer({"url": f"{hub.url}/{made['organization']}/{made['name']}"})
                return
            if self.path == "/api/validate-yaml":  # of the card
                assert json.loads(body)["content"].startswith("---\nlibrary_name: ")
                self.answer({"errors": [], "warnings": []})
                return
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
            if found is None:
                self.answer({"error": self.path}, status=404)
                return
            if found[2] == "preupload":
                files = json.loads(body)["files"]
                modes = [
                    {"path": it["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for it in files
                ]
                self.answer({"files": modes})
                return
            hub.commit(found[1], [json.loads(line) for line in body.splitlines() if line])
            url = f"{hub.url}/{found[1]}/commit/{'0' * 40}"
            self.answer({"commitUrl": url, "commitOid": "0" * 40, "success": True})

    return Handler


@contextmanager
def serving(folder: Path):
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
