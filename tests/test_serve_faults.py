"""What goes wrong around a server harms nobody else: clients that go away, a process that is killed, a damaged model, and
two processes behind nginx."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import HANG, Server, httpx, save_small

GONE, STAY = 50, 50
BODY = {"model": "small", "max_tokens": 40, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("models") / "small")


async def stream(url: str, prompt: str, leave: bool) -> str:
    """The text of a stream, or of its beginning where the client leaves after the first line."""
    async with httpx.AsyncClient(timeout=HANG) as client:
        async with client.stream("POST", f"{url}/v1/completions", json={**BODY, "prompt": prompt}) as response:
            lines = []
            async for line in response.aiter_lines():
                lines.append(line)
                if leave:
                    break
        return "\n".join(line for line in lines if '"text"' in line or "DONE" in line)


def texts(streamed: str) -> str:
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert streamed.endswith("[DONE]")
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def test_half_of_the_clients_go_away_and_the_others_get_all_of_theirs(small):
    prompts = ["abc", "xyz" * 5, "hello" * 20, "q"]
    with Server(small, "--level", "2", "--queue", "128") as server:
        alone = [texts(asyncio.run(stream(server.url, prompt, False))) for prompt in prompts]

        async def all_at_once() -> list[str]:
            asked = [stream(server.url, prompts[i // 2 % len(prompts)], i % 2 == 0) for i in range(GONE + STAY)]
            return await asyncio.gather(*asked)

        found = asyncio.run(all_at_once())
        assert [texts(one) for one in found[1::2]] == [alone[i % len(prompts)] for i in range(STAY)]
        server.until("sentinel_sequences_active", 0)
        server.until("sentinel_requests_waiting", 0)
        assert server.http.get("/health").status_code == 200


def test_a_body_of_10_mb_and_one_that_is_cut_harm_nobody(small):
    with Server(small, "--level", "2") as server:
        found = server.http.post("/v1/completions", json={**BODY, "prompt": "a" * 10_000_000})
        assert (found.status_code, found.json()["error"]["code"]) == (413, "request_too_large")
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as cut:
            cut.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert texts(asyncio.run(stream(server.url, "abc", False)))
        code, told = server.end()
        assert (code, "Traceback" in told) == (0, False), told


def test_after_a_kill_the_same_port_serves_at_once(small):
    with Server(small, "--level", "2") as first:
        before = texts(asyncio.run(stream(first.url, "abc", False)))
        with httpx.stream(
            "POST", f"{first.url}/v1/completions", json={**BODY, "prompt": "a", "max_tokens": 8000}
        ) as cut:
            next(cut.iter_lines())
            first.end(signal.SIGKILL)
    with Server(small, "--level", "2", "--port", first.url.rpartition(":")[2]) as second:
        assert second.url == first.url
        assert texts(asyncio.run(stream(second.url, "abc", False))) == before


def test_a_damaged_model_is_one_sentence(small, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(small, folder)
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    command = [sys.executable, "-m", "sentinel", "serve", str(folder), "--port", "0", "--level", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sentinel: ") and "Traceback" not in done.stderr


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream sentinel {{ least_conn; {servers} keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 4m;
        location / {{
            proxy_pass http://sentinel;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Request-Id $request_id;
            proxy_buffering off;
            proxy_read_timeout 300s;
            proxy_next_upstream error http_429 http_503 non_idempotent;
        }}
    }}
}}
"""


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_two_processes_behind_nginx_answer_as_one(small, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Server(small, "--level", "2") as one, Server(small, "--level", "2") as other:
        servers = " ".join(f"server {server.url.removeprefix('http://')};" for server in (one, other))
        file = tmp_path / "nginx.conf"
        file.write_text(NGINX.format(folder=tmp_path, port=port, servers=servers))
        nginx = subprocess.Popen(["nginx", "-p", str(tmp_path), "-c", str(file), "-e", str(tmp_path / "error.log")])
        try:
            url, end = f"http://127.0.0.1:{port}", time.monotonic() + HANG
            while True:
                try:
                    httpx.get(f"{url}/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    assert time.monotonic() < end and nginx.poll() is None, (tmp_path / "error.log").read_text()
                    time.sleep(0.05)
            alone = texts(asyncio.run(stream(one.url, "abc", False)))

            async def both() -> list[str]:
                return await asyncio.gather(*(stream(url, "abc", False) for _ in range(8)))

            assert [texts(found) for found in asyncio.run(both())] == [alone] * 8
            assert other.figure("sentinel_generated_tokens_total") > 0  # both had their share
            one.end()  # one of them ends: the other one answers all
            assert [texts(found) for found in asyncio.run(both())] == [alone] * 8
        finally:
            nginx.terminate()
            nginx.wait(HANG)
