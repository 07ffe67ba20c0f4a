"""Uploads and downloads by plain HTTP, of clients of all kinds."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import trio

from etcd_actions import ActionsClient
from etcd_actions.blobs import Grant, UrlSigner
from etcd_actions.etcd.api import KeyRange
from etcd_actions.web import Message
from etcd_actions.web.asgi import LONG_BODY
from tests.server.front.transferring import MOST, Clock, Door, clock, door
from tests.support.waiting import eventually
from tests.web.listeners import connect, h2_client, parsed, request, rest

pytestmark = pytest.mark.memory(jumps=False)

__all__ = ["clock", "door"]


def target(url: str) -> str:
    split = urlsplit(url)
    return f"{split.path}?{split.query}"


async def link(door: Door, client: ActionsClient, key: str, **fields: object) -> str:
    signer = UrlSigner(client.store, client.keys, door.clock)
    asked = {"method": "GET", "path": f"stored/{key}", "expires": signer.expiry(60)} | fields
    grant = Grant(**asked)  # type: ignore[arg-type]
    return f"/blobs/stored/{key}?{await signer.query(grant)}"


async def put(door: Door, key: str, data: bytes) -> None:
    async def parts() -> object:
        yield data

    await door.blobs.put(key, parts(), most=len(data))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["http/1.1", "h2"])
async def test_what_is_uploaded_is_stored_as_a_whole(door: Door, kind: str) -> None:
    data = os.urandom(300_000)
    location = await door.location(data, filename="a b%2F#?ü.tar.gz")
    if kind == "h2":
        async with h2_client(door.address) as h2:
            number = await h2.ask(target(location.signed_url), method="PUT", end=False)
            for at in range(0, len(data), 16_000):
                await h2.until(lambda: h2.connection.local_flow_control_window(number) >= 16_000)
                h2.connection.send_data(number, data[at : at + 16_000])
                await h2.flush()
            h2.connection.end_stream(number)
            await h2.flush()
            assert await h2.is_answered(number) == 200
    else:
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        answer = await door.http("PUT", location.signed_url, data, content_md5=digest)
        assert answer.status == 200, answer
    with open(location.native_url, "rb") as file:  # noqa: PTH123
        assert file.read() == data
    assert len(door.stored()) == 1


async def test_a_replayed_upload_of_the_same_is_harmless(door: Door) -> None:
    location = await door.location(b"one")
    for _ in range(2):
        assert (await door.http("PUT", location.signed_url, b"one")).status == 200
    again = await door.location(b"one")
    assert again.native_url == location.native_url
    answer = await door.http("PUT", location.signed_url, b"two")
    assert (answer.status, b"MD5" in answer.body) == (400, True)
    assert (await door.http("GET", location.signed_url)).status == 403


async def test_a_name_has_one_content(door: Door) -> None:
    first = await door.location(b"one", filename_root="root/a")
    second = await door.location(b"two", filename_root="root/a")
    assert first.native_url == second.native_url
    assert re.search(r"/uploads/p/d/[0-9a-f]{16}/named/root/a/code\.tar\.gz$", first.native_url)
    assert (await door.http("PUT", first.signed_url, b"one")).status == 200
    assert (await door.http("PUT", second.signed_url, b"two")).status == 409


async def test_an_upload_is_bounded_before_it_arrives_and_while_it_does(door: Door) -> None:
    location = await door.location(content_md5=b"")
    path = target(location.signed_url)
    for announced in (f"content-length: {MOST + 1}", "content-length: 999999999999999999"):
        async with await connect(door.address) as stream:
            await stream.send_all(request(path, announced, method="PUT"))
            assert parsed(await rest(stream))[0] == 413
    async with await connect(door.address) as stream:
        await stream.send_all(request(path, "transfer-encoding: chunked", method="PUT"))
        block = b"x" * (1 << 20)
        with trio.move_on_after(30):
            try:
                for _ in range(MOST // len(block) + 2):
                    await stream.send_all(b"%x\r\n%b\r\n" % (len(block), block))
            except trio.BrokenResourceError:
                pass
        assert parsed(await rest(stream))[0] == 413
    exact = await door.location(content_length=5)
    assert (await door.http("PUT", exact.signed_url, b"hello!")).status == 413
    assert (await door.http("PUT", exact.signed_url, b"hell")).status == 400
    assert door.stored() == []
    assert (await door.http("PUT", exact.signed_url, b"hello")).status == 200


async def test_another_md5_in_the_header_is_refused(door: Door) -> None:
    location = await door.location()
    for announced in (base64.b64encode(b"x" * 16).decode(), "nonsense!"):
        answer = await door.http("PUT", location.signed_url, b"hello", content_md5=announced)
        assert answer.status == 400
    assert door.stored() == []


def forged(url: str) -> Iterator[str]:
    """The URL, changed in all kinds of ways."""
    path, _, query = target(url).partition("?")
    yield path
    yield f"{path}?"
    yield f"{path}?{query[:-1]}"
    yield f"{path}?{query}&length=1"
    yield f"{path}?{query}&{query}"
    yield f"{path}?{query}&x=y"
    yield f"{path}?" + query.replace("md5=", "md5=00")
    yield f"{path}?" + query.replace("expires=", "expires=9")
    yield f"{path}?" + query.replace("signature=", "signature=%C3%BC")
    yield f"{path}?" + query.replace("expires=", "expires=%D9%A1")
    yield f"{path}?" + "x" * 5000
    yield f"{path}x?{query}"
    yield path.replace("/p/", "/other/") + f"?{query}"
    yield path.replace("stored/", "local/") + f"?{query}"
    yield f"/blobs/stored/../../etc/passwd?{query}"
    yield f"/blobs/stored/%2e%2e/%2e%2e/etc/passwd?{query}"
    yield f"/blobs/?{query}"


async def test_a_forged_url_is_refused(door: Door) -> None:
    location = await door.location()
    other = await door.location(b"other")
    for url in forged(location.signed_url):
        answer = await door.http("PUT", url, b"hello")
        assert answer.status == 403, url
    path, _ = target(location.signed_url).split("?")
    _, query = target(other.signed_url).split("?")
    assert (await door.http("PUT", f"{path}?{query}", b"hello")).status == 403
    assert door.stored() == []
    assert (await door.http("POST", location.signed_url, b"hello")).status == 405


async def test_an_expired_url_is_said_to_be_that(door: Door, clock: Clock) -> None:
    location = await door.location()
    clock.now += 3599
    assert (await door.http("PUT", location.signed_url, b"hello")).status == 200
    clock.now += 1
    answer = await door.http("PUT", location.signed_url, b"hello")
    assert (answer.status, b"expired" in answer.body) == (410, True)


async def test_all_processes_verify_each_others_urls(door: Door, client: ActionsClient) -> None:
    signers = [UrlSigner(client.store, client.keys, door.clock) for _ in range(5)]
    grant = Grant(method="PUT", path="stored/x", expires=signers[0].expiry(60), md5=b"m" * 16)
    queries: list[str] = []

    async def sign(signer: UrlSigner) -> None:
        queries.append(await signer.query(grant))

    async with trio.open_nursery() as nursery:
        for signer in signers:
            nursery.start_soon(sign, signer)
    assert len(set(queries)) == 1
    assert await UrlSigner(client.store, client.keys).query(grant) == queries[0]
    kvs, _ = await client.store.read(KeyRange.of_prefix(client.keys.signing))
    assert len(kvs) == 1


@pytest.mark.parametrize("end", ["cut", "stall"])
async def test_an_upload_that_ends_in_the_middle_leaves_nothing(door: Door, end: str) -> None:
    location = await door.location(content_md5=b"")
    head = request(target(location.signed_url), "content-length: 3000000", method="PUT")
    async with await connect(door.address) as stream:
        await stream.send_all(head + b"x" * 2_000_000)
        await eventually(lambda: len(door.stored()) == 1)
        if end == "stall":
            assert parsed(await rest(stream))[0] == 408
    await eventually(lambda: door.stored() == [])
    assert (await door.http("PUT", location.signed_url, b"x")).status == 200


async def test_only_who_may_upload_gets_time_for_it(door: Door) -> None:
    (route,) = door.front.routes()
    location = await door.location()
    asked: list[str] = []

    async def receive() -> Message:
        await trio.lowlevel.checkpoint()
        return {"type": "http.request", "body": b"hello", "more_body": False}

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            asked.append(f"answered {message['status'].value}")

    path, _, query = target(location.signed_url).partition("?")
    scope = {
        "method": "PUT",
        "path": path,
        "raw_path": path.encode(),
        "headers": [],
        "extensions": {LONG_BODY: lambda: asked.append("time")},
    }
    await route(scope | {"query_string": query[:-5].encode()}, receive, send)
    await route(scope | {"query_string": query.encode()}, receive, send)
    assert asked == ["answered 403", "time", "answered 200"]


async def test_downloads_have_ranges_and_safe_types(door: Door, client: ActionsClient) -> None:
    data = bytes(range(256)) * 10_000
    await put(door, "runs/p/d/r/report.html", data)
    url = await link(door, client, "runs/p/d/r/report.html")
    whole = await door.http("GET", url)
    assert (whole.status, whole.body == data) == (200, True)
    assert whole.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in whole.headers["content-security-policy"]
    head = await door.http("HEAD", url)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(data))
    size = len(data)
    for asked, start, end in (
        ("bytes=0-9", 0, 10),
        ("bytes=5-", 5, size),
        ("bytes=-7", size - 7, size),
        (f"bytes=-{size * 2}", 0, size),
        (f"bytes=10-{size * 2}", 10, size),
    ):
        part = await door.http("GET", url, range=asked)
        assert (part.status, part.body == data[start:end]) == (206, True), asked
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    for asked in (f"bytes={size}-", "bytes=-0"):
        refused = await door.http("GET", url, range=asked)
        assert refused.status == 416
        assert refused.headers["content-range"] == f"bytes */{size}"
    for asked in ("bytes=9-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=a-b"):
        assert (await door.http("GET", url, range=asked)).status == 200
    assert (await door.http("GET", url, range="bytes=0-9", if_range='"x"')).status == 200


async def test_what_is_not_there_is_not_found(door: Door, client: ActionsClient) -> None:
    assert (await door.http("GET", await link(door, client, "runs/p/d/none"))).status == 404
    # What a link leads to is refused, also with a signature.
    (door.folder / "link").symlink_to("/etc")
    assert (await door.http("GET", await link(door, client, "link/passwd"))).status == 404
    bad = await link(door, client, "x//y")
    assert (await door.http("GET", bad)).status == 400


async def test_uploads_wait_for_each_other(door: Door) -> None:
    """More at once than have room all succeed."""
    location = await door.location(b"same")

    async def upload() -> None:
        assert (await door.http("PUT", location.signed_url, b"same")).status == 200

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(upload)
    assert len(door.stored()) == 1
