"""The endpoint's client against a local server that is right, slow, malformed or failing."""

import gzip
import json
import socket
import threading
import time
from contextlib import contextmanager
from itertools import chain, repeat

import pytest
from judge_server import completion, says, serving

from eval.open_ended.judge_endpoint import Endpoint, Reply, _certificates, ask, check_endpoint
from sft.errors import UserError

KEY = "sk-very-secret-0123456789"
HELLO = [{"role": "user", "content": "Hello, 世界"}]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")


def endpoint(url, **changes):
    options = {"key_variable": "JUDGE_KEY", "timeout": 5.0, "tries": 3, "backoff": 0.001}
    return Endpoint(url, "judge-1", **options | changes)


def test_a_request_is_what_the_protocol_asks_for():
    with serving(says("Hi")) as server:
        reply = ask(endpoint(server.url + "/"), HELLO, max_tokens=7, temperature=0.5)
        (request,) = server.requests
    assert reply == Reply("Hi", 100, 10)
    assert request["path"] == "/v1/chat/completions"
    assert request["body"] == {
        "model": "judge-1",
        "messages": HELLO,
        "max_tokens": 7,
        "temperature": 0.5,
    }
    assert request["headers"]["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_no_header_is_sent(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY")
    with serving(says("Hi")) as server:
        ask(endpoint(server.url), HELLO, max_tokens=7)
        assert "Authorization" not in server.requests[0]["headers"]


MALFORMED = [
    b"not json",
    b"",
    b"[]",
    b'{"choices": []}',
    b'{"choices": [{"message": {}}]}',
    b'{"choices": "x"}',
    completion(None),
    b"\xff\xfe{",
    b"[" * 100_000,
    b'{"choices": ' + b'{"a":' * 100_000,
]


@pytest.mark.parametrize("bad", MALFORMED)
def test_a_malformed_reply_is_asked_for_again(bad):
    with serving(lambda _, n: (200, {}, bad if n < 2 else completion("fine"))) as server:
        assert ask(endpoint(server.url), HELLO, max_tokens=7).text == "fine"
        assert len(server.requests) == 3


@pytest.mark.parametrize("count", [True, -1, 10**400, "3", 2.5, [], {"a": 1}])
def test_a_count_that_is_none_counts_nothing_and_half_a_character_is_marked(count):
    body = {"choices": [{"message": {"content": "good \ud83d"}}], "usage": {"prompt_tokens": count}}
    with serving(lambda *_: (200, {}, json.dumps(body).encode())) as server:
        assert ask(endpoint(server.url), HELLO, max_tokens=7) == Reply("good \ufffd", 0, 0)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_server_is_asked_again_and_then_given_up_in_one_sentence(status):
    with serving(lambda _, n: (status, {}, KEY.encode())) as server:
        with pytest.raises(UserError) as error:
            ask(endpoint(server.url), HELLO, max_tokens=7)
        assert len(server.requests) == 3
    text = str(error.value)
    assert f"did not answer in 3 tries (last: HTTP {status})" in text
    assert "start the same command again" in text and "\n" not in text and KEY not in text


def test_pauses_double_and_a_retry_after_is_kept(monkeypatch):
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    replies = [(500, {}, b""), (500, {}, b""), (429, {"Retry-After": "7"}, b""), (500, {}, b"")]
    with serving(lambda _, n: replies[n] if n < 4 else (200, {}, completion("ok"))) as server:
        ask(endpoint(server.url, tries=5, backoff=1.0), HELLO, max_tokens=7)
    assert pauses == [1.0, 2.0, 7.0, 8.0]
    pauses.clear()
    busy = serving(lambda _, n: (429, {"Retry-After": "86400"}, b""))
    with busy as server, pytest.raises(UserError):
        ask(endpoint(server.url, tries=2), HELLO, max_tokens=7)
    assert pauses == [60.0]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, r"set \$JUDGE_KEY to a valid key"), (404, "the model's name 'judge-1'"), (400, "check")],
)
def test_a_refusal_is_final(status, remedy):
    with serving(lambda _, n: (status, {}, f"bad key {KEY}".encode())) as server:
        with pytest.raises(UserError, match=remedy) as error:
            ask(endpoint(server.url), HELLO, max_tokens=7)
        assert len(server.requests) == 1
    assert KEY not in str(error.value) and error.value.__cause__ is None


def test_a_redirect_is_not_followed_so_that_the_key_stays_with_its_host():
    with serving(says("stolen")) as thief:
        away = {"Location": f"{thief.url}/chat/completions"}
        for status in (301, 302, 307):
            elsewhere = serving(lambda _, n, s=status: (s, away, b""))
            with elsewhere as server, pytest.raises(UserError, match=f"HTTP {status}"):
                ask(endpoint(server.url), HELLO, max_tokens=7)
        assert thief.requests == []


def test_a_slow_server_is_given_up_after_the_time_limit():
    def slow(_, n):
        time.sleep(0.5)
        return 200, {}, completion("late")

    with serving(slow) as server:
        with pytest.raises(UserError, match=r"no complete reply within 0.1 seconds"):
            ask(endpoint(server.url, timeout=0.1, tries=2), HELLO, max_tokens=7)
        assert ask(endpoint(server.url, timeout=5.0), HELLO, max_tokens=7).text == "late"


def _once(data):
    yield data


def _every(data, *, pause, times=400):
    for _ in range(times):
        yield data
        time.sleep(pause)


OK = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "body": lambda: chain(_once(OK + b"Content-Length: 1000\r\n\r\n"), _every(b" ", pause=0.05)),
    "chunks": lambda: chain(
        _once(OK + b"Transfer-Encoding: chunked\r\n\r\n"), _every(b"1\r\n \r\n", pause=0.05)
    ),
    "headers": lambda: chain(_once(OK + b"X-Slow: "), _every(b"a", pause=0.05)),
    "status line": lambda: _every(b"H", pause=0.05),
    "100 Continue": lambda: _every(b"HTTP/1.1 100 Continue\r\n\r\n" * 50, pause=0.001, times=9**9),
    "103 Early Hints": lambda: _every(b"HTTP/1.1 103 Early Hints\r\n\r\n", pause=0.05),
}


@contextmanager
def sending(pieces):
    """A server that answers the first connection with these bytes, until the other end closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    try:
                        connection.sendall(piece)
                    except OSError:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            thread.join()


@pytest.mark.parametrize("part", ENDLESS)
def test_a_server_that_sends_without_end_is_held_to_the_limit_of_the_whole_exchange(part):
    """Each byte arrives within the limit, the complete reply does not."""
    with (
        sending(ENDLESS[part]()) as url,
        pytest.raises(UserError, match=r"no complete reply within 0.3 seconds"),
    ):
        ask(endpoint(url, timeout=0.3, tries=1), HELLO, max_tokens=7)


def test_a_reply_of_any_size_is_not_kept():
    """Bodies and headers are cut off at a size, compressed ones are not unpacked."""
    body = chain(_once(OK + b"\r\n"), repeat(b" " * 2**16, 200))
    with sending(body) as url, pytest.raises(UserError, match="more than 4,194,304 bytes"):
        ask(endpoint(url, tries=1), HELLO, max_tokens=7)
    headers = chain(_once(OK), repeat(b"X-Long: " + b"a" * 2**16, 200))
    with sending(headers) as url, pytest.raises(UserError, match="the connection broke"):
        ask(endpoint(url, tries=1), HELLO, max_tokens=7)
    zipped = gzip.compress(b" " * 2**26)
    with (
        serving(lambda _, n: (200, {"Content-Encoding": "gzip"}, zipped)) as server,
        pytest.raises(UserError, match="no chat completion"),
    ):
        ask(endpoint(server.url, tries=1), HELLO, max_tokens=7)


def test_an_endpoint_that_is_down_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match=r"did not answer in 2 tries \(last: .*refused") as error:
        ask(endpoint(f"http://127.0.0.1:{port}/v1", tries=2), HELLO, max_tokens=7)
    assert "\n" not in str(error.value)


def test_an_address_or_key_that_cannot_work_is_refused_unsent(monkeypatch):
    with pytest.raises(UserError, match="is no http"):
        check_endpoint(endpoint("file:///etc/passwd"))
    with pytest.raises(UserError, match="holds a password") as error:
        check_endpoint(endpoint("https://me:hunter2@host/v1"))
    assert "hunter2" not in str(error.value)
    monkeypatch.setenv("JUDGE_KEY", KEY + "\n")
    with pytest.raises(UserError, match=r"\$JUDGE_KEY holds white space") as error:
        check_endpoint(endpoint("https://host/v1"))
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://[::1/v1", "http://localhost:99999/v1", "http://localhost:abc/v1"),
        *("http://localhost:0/v1", "http://localhost:80/v1\x00", "http:///v1", "localhost:80/v1"),
    ],
)
def test_an_address_that_is_none_is_refused_in_a_sentence(url):
    with pytest.raises(UserError, match="is no http"):
        check_endpoint(endpoint(url))


def test_the_proxy_of_the_addresss_own_scheme_is_used_and_no_other(monkeypatch):
    """Many have $ALL_PROXY for SOCKS, which is for no HTTP client; a judge at home needs none."""
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(says("Hi")) as server:
        monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
        monkeypatch.setenv("https_proxy", "ftp://x")
        assert ask(endpoint(server.url), HELLO, max_tokens=7).text == "Hi"
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1").removeprefix("http://"))
        assert ask(endpoint("http://judge.invalid/v1"), HELLO, max_tokens=7).text == "Hi"
        assert server.requests[-1]["path"] == "http://judge.invalid/v1/chat/completions"
        monkeypatch.setenv("http_proxy", "socks5://me:hunter2@127.0.0.1:9")
        with pytest.raises(UserError, match=r"\$http_proxy names is no http\(s\) address") as no:
            check_endpoint(endpoint(server.url))
        assert "hunter2" not in str(no.value)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert ask(endpoint(server.url), HELLO, max_tokens=7).text == "Hi"


def test_certificates_that_are_not_there_are_named(monkeypatch, tmp_path):
    _certificates.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match=r"no certificates could be read .*\$SSL_CERT_FILE"):
        check_endpoint(endpoint("https://host/v1"))
