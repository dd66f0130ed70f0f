"""A chat endpoint on this machine that answers as a vision-language model would, by the embedded world's exact judges.

python -m scripts.serve_judge --port 8123                       by adherence, then by the taste `high`
python -m scripts.serve_judge --taste warm --near 0.1           by another taste; pictures that are near each other: the first is better

It takes what `{vlm: {url: ...}}` sends, and shows what a judge costs and how its order counts without a network of billions of weights.
`--failing N` answers every Nth request with an error, `--refusing N` refuses it.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

from PIL import Image

from diffalign.data.world.judge import adherence, read
from diffalign.data.world.tastes import TASTES, taste_score


def answer(text: str, images: Sequence[Image.Image], taste: str, near: float) -> str:
    """Return the answer to a question of `vlm`: JSON with a mark for each aspect of one picture, or with the better of two."""
    match = re.search(r'^Prompt: "(.*)"$', text, re.MULTILINE)
    prompt = match[1] if match else ""
    worth = [(adherence(prompt, read(image)), taste_score(taste, image)) for image in images]
    if len(images) == 1:
        shown, liked = worth[0]
        marks = {aspect: round(1.0 + 9.0 * (shown if aspect == "alignment" else liked), 3) for aspect in re.findall(r'"(\w+)": MARK', text)}
        return json.dumps(marks)
    first, second = (shown + liked for shown, liked in worth)
    if abs(first - second) <= near:
        return json.dumps({"better": "first" if near else "tie"})
    return json.dumps({"better": "first" if first > second else "second"})


def completion(body: Any, taste: str, near: float, *, refuses: bool) -> dict[str, Any]:
    """Return a chat completion."""
    content = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB") for url in urls]
    text = next(part["text"] for part in content if part["type"] == "text")
    message = {"role": "assistant", "content": "" if refuses else answer(text, images, taste, near)}
    return {"choices": [{"index": 0, "message": message | ({"refusal": "no"} if refuses else {}), "finish_reason": "stop"}]}


def serve(port: int, taste: str, near: float, failing: int, refusing: int) -> ThreadingHTTPServer:
    """Return the server, not started yet; port 0 takes a free one."""
    numbers = count(1)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Answer one question."""
            number, body = next(numbers), json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fails = failing > 0 and number % failing == 0
            content = b"" if fails else json.dumps(completion(body, taste, near, refuses=refusing > 0 and number % refusing == 0)).encode()
            self.send_response(503 if fails else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the names of the class that asks
            """Write nothing of every request."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--taste", choices=sorted(TASTES), default="high")
    parser.add_argument("--near", type=float, default=0.0, help="worth by which two pictures must differ for the order not to count")
    parser.add_argument("--failing", type=int, default=0)
    parser.add_argument("--refusing", type=int, default=0)
    options = parser.parse_args()
    server = serve(options.port, options.taste, options.near, options.failing, options.refusing)
    print(f"http://127.0.0.1:{server.server_port}/v1")
    server.serve_forever()


if __name__ == "__main__":
    main()
