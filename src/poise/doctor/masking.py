"""What is left out of a run's files, because reports are forwarded to others.

Masked (shown as ``***``) in the recorded arguments, and in every text that is recorded with them (the exception that
ended a script, say):

- the value of ``--NAME=VALUE``, ``--NAME VALUE``, ``NAME=VALUE`` or ``NAME: VALUE`` whose name has a word for a secret
  in it: *password*, *secret*, *credential*, *auth* and their like, or *key* or *token* as its last word. Names that end
  so and mean something else (``--pad-token``, ``--sort-key``), and values that are numbers or switches, are left as
  they are;
- user and password in an address: ``https://user:password@host``; what follows ``Bearer`` or ``Basic``; private keys
  in PEM form;
- values that look like keys: those with the prefix of a known service (``sk-``, ``ghp_``, ``hf_``, ...), JSON web
  tokens, and 20 or more letters and digits in a row that change between capitals, small letters and digits about as
  often as random ones do. A name that says that such a value is public (``--commit``, ``--sha256``) keeps it.

Paths below the working directory are shown relative to it, and the home directory as ``~``.

What cannot be known: a password that is a word, given without a name (``train.py hunter2``) or after a short option
(``-p hunter2``); a random value with a separator every few characters, or (fewer than one in ten) one that happens to
look like words; names of people, customers and projects; and what the script prints or writes itself, ``stdout.txt``
and ``stderr.txt`` of a trial included. The environment is not recorded at all.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MASK = "***"

_SECRET_WORDS = {
    "apikey", "auth", "authorization", "credential", "credentials", "cred", "creds", "pass", "passphrase", "passwd",
    "password", "passwords", "pw", "pwd", "secret", "secrets", "bearer", "cookie",
}  # fmt: skip
_LAST_WORDS = {"key", "token", "dsn"}
_BEFORE_KEYS = {"api", "access", "private"}
_NOT_SECRET_BEFORE = {
    "pad", "eos", "bos", "unk", "mask", "sep", "cls", "sort", "label", "labels", "image", "text", "num", "max", "min",
    "special", "begin", "start", "end", "stop", "next", "target", "input", "output", "data", "dataset", "batch",
    "metric", "monitor", "column", "query", "new", "state", "dict", "loss", "foreign", "primary", "public", "feature",
}  # fmt: skip
_PUBLIC_WORDS = {
    "commit", "revision", "rev", "sha", "sha1", "sha256", "md5", "hash", "checksum", "digest", "git", "uuid", "id",
}  # fmt: skip
_PLAIN_VALUE = re.compile(r"[+-]?[\d.,_]+(e[+-]?\d+)?|true|false|yes|no|on|off|none|null", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*|\d+")

_KNOWN_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|hf_[A-Za-z0-9]{16,}|xox[abeoprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|npm_[A-Za-z0-9]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r")"
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SCHEME = re.compile(r"\b(Bearer|bearer|Basic)\s+(?=[^\s\"',;]*[A-Z0-9=_-])[^\s\"',;]{8,}")
_ASSIGNMENT = re.compile(r"""(?P<name>[A-Za-z][\w.-]*)(?P<sign>["']?\s*[=:]\s*["']?)(?P<value>[^\s"',;&{}()\[\]]+)""")
_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_OPTION = re.compile(r"--?[A-Za-z][\w.-]*")
_WORTH_READING = re.compile(r"[/=:@\s]|[\w-]{16}")  # most texts are names of layers and dtypes


class Masking:
    """Leaves secrets and absolute paths out of what is recorded; see the module for the rules.

    Args:
        args: the arguments that a script is given; what is masked in them is masked in every other text too.
        keep_args: leave the arguments and all secrets as they are; paths are shortened in other texts all the same.
    """

    def __init__(self, args: Sequence[str] = (), keep_args: bool = False) -> None:
        self._keep = keep_args
        self._places = _places()
        self._secrets: list[str] = []
        self.args = list(args) if keep_args else self._mask_arguments(list(args))
        """The arguments as they are recorded."""

    def text(self, text: str) -> str:
        """Return a text without secrets and with short paths."""
        if self._keep:
            return self._shorten(text)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return self._shorten(_mask_text(text)) if _WORTH_READING.search(text) else text

    def tree(self, value: Any) -> Any:
        """Return the same for every text in nested mappings and lists; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.tree(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(item) for item in value]
        return value

    def _mask_arguments(self, args: list[str]) -> list[str]:
        out: list[str] = []
        for before, arg in zip(["", *args], args, strict=False):
            follows_option = _OPTION.fullmatch(before) is not None and not arg.startswith("-")
            masked = _mask_value(before.lstrip("-"), arg) if follows_option else _mask_text(arg)
            if masked != arg:
                self._secrets += _left_out(arg, masked)
            out.append(self._shorten(masked))
        return out

    def _shorten(self, text: str) -> str:
        for pattern, short in self._places:
            text = pattern.sub(short, text)
        return text


def _mask_text(text: str) -> str:
    text = _PEM.sub(MASK, text)
    text = _USER_IN_URL.sub(MASK, text)
    text = _SCHEME.sub(rf"\1 {MASK}", text)
    out, end = [], 0
    for found in _ASSIGNMENT.finditer(text):
        out += [_mask_keys(text[end : found.start()]), found["name"], found["sign"]]
        # In a sentence, "missing key: weight" is no secret; in JSON and in a header's name it is.
        sentence = found["sign"].lstrip().startswith(":") and len(_words(found["name"])) == 1
        out.append(_mask_value("" if sentence else found["name"], found["value"]))
        end = found.end()
    return "".join(out) + _mask_keys(text[end:])


def _mask_value(name: str, value: str) -> str:
    words = _words(name)
    if _is_secret_name(words) and not _PLAIN_VALUE.fullmatch(value) and value not in ("Bearer", "bearer", "Basic"):
        return MASK
    return value if set(words) & _PUBLIC_WORDS else _mask_text(value)


def _mask_keys(text: str) -> str:
    text = _KNOWN_KEYS.sub(MASK, text)
    return _RUN.sub(lambda found: MASK if _looks_random(found[0]) else found[0], text)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _is_secret_name(words: list[str]) -> bool:
    before, last = set(words[:-1]), words[-1:]
    if set(words) & _SECRET_WORDS or (last in (["keys"], ["tokens"]) and before & _BEFORE_KEYS):
        return True
    return bool(set(last) & _LAST_WORDS) and not before & _NOT_SECRET_BEFORE


def _looks_random(run: str) -> bool:
    """Return whether letters and digits in a row look drawn at random, rather than put together from words."""
    kinds = ["A" if c.isupper() else "a" if c.islower() else "0" for c in run]
    if "0" not in kinds or len(set(kinds)) < 2:
        return False
    # From a capital to a small letter is how words go on in CamelCase. What is left changes at 40 % of the letters and
    # more where they are random, at 20 % where words of five letters are joined, and twice at every number in a name.
    changes = [a + b for a, b in itertools.pairwise(kinds) if a != b and a + b != "Aa"]
    at_digits = sum("0" in change for change in changes)
    entropy = -sum(n / len(run) * math.log2(n / len(run)) for n in Counter(run).values())
    return max(at_digits / 0.2, len(changes) / 0.3) >= len(run) - 1 and entropy >= 3.0


def _left_out(arg: str, masked: str) -> list[str]:
    """Return the parts of ``arg`` that ``***`` stands for, where they are long enough to differ from words."""
    pattern = "(.+?)".join(map(re.escape, masked.split(MASK)))
    found = re.fullmatch(pattern, arg, re.DOTALL)
    return [part for part in (found.groups() if found else ()) if len(part) >= 6]


def _places() -> list[tuple[re.Pattern[str], str]]:
    """Return what finds the working directory and the home directory in a text, each with what stands for it."""
    here, home = os.getcwd(), str(Path.home())
    logical = os.environ.get("PWD", here)
    roots = {here: None, logical: None} if os.path.realpath(logical) == os.path.realpath(here) else {here: None}
    places = []
    for root in filter(_is_below_the_root, roots):
        places += [(_path(root, r"/(?=[^/\s])"), ""), (_path(root, rf"(?={_END})"), ".")]
    homes = {home: None, os.path.realpath(home): None}
    return places + [(_path(one, rf"(?=/|{_END})"), "~") for one in filter(_is_below_the_root, homes)]


def _is_below_the_root(path: str) -> bool:
    return bool(path.strip(os.sep))  # everything lies below the root: that would shorten nothing


def _path(path: str, end: str) -> re.Pattern[str]:
    return re.compile(rf"(?:(?<![\w./~-])|(?<=file://)|(?<=-[A-Za-z])){re.escape(path)}{end}")


_END = r"$|[\s:\"',;)\]]"
