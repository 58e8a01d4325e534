"""An OpenAI-compatible endpoint on loopback that fails as real ones do: a script says what each request meets."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint:
    """Answers chat completions by ``reply``; before that, each request takes the next of ``faults``, in order.

    A fault is a function of the handler that answers in its own way, or None for no fault.
    """

    def __init__(self, reply: Callable[[dict], str]) -> None:
        self.reply = reply
        self.faults: list[Callable | None] = []
        self.model = "judge-2024-01-01"
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.answered = self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(endpoint):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.bodies.append(body)
                    endpoint.headers.append(dict(self.headers))
                    fault = endpoint.faults.pop(0) if endpoint.faults else None
                    endpoint.busy += 1
                    endpoint.most_busy = max(endpoint.busy, endpoint.most_busy)
                try:
                    if fault is None:
                        with endpoint.lock:
                            endpoint.answered += 1
                        send(self, 200, completion(endpoint.reply(body), endpoint.model))
                    else:
                        fault(self)
                finally:
                    with endpoint.lock:
                        endpoint.busy -= 1

        return Handler


def completion(text: str | None, model: str) -> dict:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "model": model, "choices": [choice], "usage": usage}


def send(handler: BaseHTTPRequestHandler, status: int, content: object, **headers: str) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(data)))
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.wfile.write(data)


def status(code: int, *, error: dict | None = None, **headers: str) -> Callable:
    return lambda handler: send(handler, code, {"error": error or {"message": f"status {code}"}}, **headers)


def echo_key(code: int) -> Callable:
    """An endpoint that quotes the key it was given, as careless proxies do."""
    return lambda handler: send(handler, code, {"error": {"message": f"bad key: {handler.headers['Authorization']}"}})


def stall(seconds: float) -> Callable:
    def fault(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(2)


def body(content: object) -> Callable:
    return lambda handler: send(handler, 200, content)
