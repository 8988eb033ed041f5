"""`make secret`: values from FILE, the environment or the keyboard, checked as the program checks them."""

from __future__ import annotations

import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from getpass import getpass
from pathlib import Path

from hack.kubectl import CRONJOB, SECRET, Cluster, Object, Stop, given, objects, say

REQUIRED, TOKEN = ("DB_USER", "DB_PASSWORD", "TWILIO_ACCOUNT_SID"), "TWILIO_AUTH_TOKEN"
KEY = ("TWILIO_API_KEY_SID", "TWILIO_API_KEY_SECRET")
NAMES = (*REQUIRED, TOKEN, *KEY, "HEARTBEAT_URL")
SHOWN = {"DB_USER": "", "TWILIO_ACCOUNT_SID": "AC", "TWILIO_API_KEY_SID": "SK"}  # while typed; how a SID begins
PLACEHOLDER = re.compile(r"your-\S*|\+1234567890", re.IGNORECASE)


def fault(name: str, value: object) -> str:
    """What the program would find wrong with a value; nothing when it is right."""
    if not isinstance(value, str):
        return f"Put quotes around {name}, which YAML takes for a number."
    if PLACEHOLDER.fullmatch(value):
        return f"{name} is still the placeholder {value}."
    if name == "HEARTBEAT_URL" and not re.fullmatch(r"https://[^\s?#]+", value):
        return f"{name} is no https:// URL without ? and #."
    right = not (begin := SHOWN.get(name)) or re.fullmatch(f"{begin}[0-9a-fA-F]{{32}}", value)
    return "" if right else f"{name} is not {begin} and 32 hexadecimal digits."


def lacking(have: Mapping[str, str]) -> list[str]:
    """What is missing yet: the program takes an API key, both halves of it, or the auth token."""
    halves = [name for name in KEY if not have.get(name)]
    twilio = [] if have.get(TOKEN) else [TOKEN] if len(halves) == len(KEY) else halves
    return [name for name in REQUIRED if not have.get(name)] + twilio


def values_of(secret: Object) -> dict[str, str]:
    return {name: b64decode(value).decode(errors="replace") for name, value in secret.data.items()}


def read_file(path: str) -> dict[str, str]:
    """Lines NAME=value, or a filled copy of k8s/secret.yaml."""
    try:
        text = Path(path).expanduser().read_text()  # zsh leaves the ~ of FILE=~/... as it is
        if re.search("^kind: *Secret", text, re.MULTILINE):
            (found,) = objects(text)
            return {**values_of(found), **found.stringData}
    except (OSError, ValueError, RuntimeError):  # no text, not one Secret, no base64; there is no such user's home
        raise Stop(f"there is no file {path} that can be read.") from None
    kept = [line.lstrip().removeprefix("export ") for line in text.splitlines() if line.strip()]
    pairs = [line.partition("=") for line in kept if not line.startswith("#")]
    return {name: re.sub(r"""^(["'])(.*)\1$""", r"\2", value) for name, _, value in pairs}


def wrong_in(values: Mapping[str, str]) -> Iterator[str]:
    for name, value in values.items():
        if wrong := fault(name, value) if name in NAMES else f"{name!r} is none of these: {' '.join(NAMES)}.":
            yield wrong
    if TOKEN in values and values.keys() & set(KEY):
        yield f"{TOKEN} and {KEY[1]} are both set: the program takes one of them. Unset the other."
    elif len(values.keys() & set(KEY)) == 1:
        yield f"An API key has two halves: set {' and '.join(KEY)}, or none of them."


def ask(name: str, hint: str = "") -> str:
    """A value from the keyboard, until it is right: what was typed before is not lost by a mistake."""
    while True:
        value = input(f"{name}{hint}: ") if name in SHOWN else getpass(f"{name} (not shown): ")
        if not (wrong := fault(name, value) if value else "" if hint else f"{name} is needed."):
            return value
        say(f"{wrong} Once more.")


def typed(missing: list[str]) -> dict[str, str]:
    """The API key comes before the auth token: it can be revoked alone."""
    values = {name: ask(name) for name in missing if name != TOKEN}
    if TOKEN in missing:
        sid = ask(KEY[0], " (the better choice; empty: the auth token)")
        values |= {KEY[0]: sid, KEY[1]: ask(KEY[1])} if sid else {TOKEN: ask(TOKEN)}
    return values


def secret(cluster: Cluster) -> None:
    if maker := cluster.maker_of_secret():
        undone = f"comes from the {maker.kind} in {cluster.overlay}, which would undo this: change it there"
        look = f"kubectl describe {maker.kind.lower()} {maker.metadata.name} -n {cluster.namespace}"
        raise Stop(f"the Secret {SECRET} {undone}. Does it not come? {look}")
    # A filled file is the whole truth: what the shell happens to hold does not mix with it.
    found = read_file(given("FILE")) if given("FILE") else {name: given(name) for name in NAMES}
    values = {name: value for name, value in found.items() if value or name not in NAMES}
    if wrong := list(wrong_in(values)):
        raise Stop(" ".join(wrong))
    cluster.make_namespace()
    before = cluster.get("secret", SECRET)
    held = {name: value for name, value in values_of(before).items() if not PLACEHOLDER.fullmatch(value)}
    missing = lacking(held | values)
    if missing and not sys.stdin.isatty():
        remedy = "Set them in the environment, or name a file with lines NAME=value: make secret FILE=..."
        raise Stop(f"these are missing: {' '.join(missing)}. {remedy}")
    if not (values := values | typed(missing)):
        raise Stop(f"nothing to change: set the variables that are new, of {' '.join(NAMES)}")
    write_secret(cluster, before, values)


def write_secret(cluster: Cluster, before: Object, values: dict[str, str]) -> None:
    """A merge patch leaves alone what else the Secret holds. The new kind of credentials replaces the old one."""
    data = {name: b64encode(value.encode()).decode() for name, value in values.items()}
    if not before:
        new = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "labels": {"app": CRONJOB}}}
        cluster.ask("create", "-f", "-", send=new | {"data": data})
        say(f"Secret {SECRET} made in {cluster.where}, with {' '.join(values)}.")
        return
    other = KEY if TOKEN in values else [TOKEN] if KEY[0] in values else []
    removed = [name for name in other if name in before.data]
    patch = {"data": {**data, **dict.fromkeys(removed)}}
    cluster.ask("patch", "secret", SECRET, "--type=merge", "--patch-file=/dev/stdin", send=patch)
    gone = f" Removed {' '.join(removed)}: the program takes one kind of credentials." if removed else ""
    say(f"Secret {SECRET} in {cluster.where}: set {' '.join(values)}.{gone} What else it holds stays.")
