"""Damages files at random and reads them: nothing may come but an answer or a named error.

    python -m tests.fuzzing [--minutes=60] [--kinds coco png …]

Each kind is a folder of good files and a way to read them. A round changes one file, at the level
of its bytes or, if it is JSON, of its values, and reads it; whatever is raised other than
`UserError` (of an artefact: `check.Refused`) is a find: the damaged file is kept under
tests/corpus/KIND/, which tests/test_fuzzing.py reads again each time the tests run. Prints the
rounds, the finds and the deaths: of a library that is not ours, in a process of its own.
"""

import argparse
import hashlib
import json
import multiprocessing
import pathlib
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

from tests.fuzzed import KINDS, Kind

CORPUS = pathlib.Path(__file__).parent / "corpus"
_SECONDS = 120  # after which a read counts as hanging
_BYTES = 16 * 2**30  # of address space, of a process that reads for this one
_STRANGE: list[Any] = [
    *(None, True, -1, 0, 1e308, -1e308, float("nan"), 2**70, "", "a" * 300, "../../x", "\0", "1"),
    *([], {}, [[]], [None], {"a": 1}, [1, 2], [[1, 2], [3, 4]]),
]


def damage(data: bytes, rng: random.Random) -> bytes:
    """Changes a file's content: its JSON values, where it has some, or its bytes."""
    if rng.random() < 0.6:
        try:
            content = json.loads(data)
        except ValueError:
            pass
        else:
            return json.dumps(_with_strange(content, rng)).encode()
    body = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(body) + 1)
        how = rng.random()
        if how < 0.4 and body:
            body[min(place, len(body) - 1)] = rng.randrange(256)
        elif how < 0.6:
            body[place : place + rng.randrange(1, 30)] = b""
        elif how < 0.8:
            body[place:place] = rng.choice((b"\0", b",", b"-", b"9" * 20, b"\xff\xfe", b"\n", b'"'))
        elif how < 0.9:
            body[place:place] = body[: rng.randrange(1, 60)]
        else:
            del body[place:]
    return bytes(body)


def _with_strange(content: Any, rng: random.Random) -> Any:
    """Replaces, removes or doubles one value somewhere in nested JSON."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.15:
        return rng.choice(_STRANGE)
    key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
    how = rng.random()
    if how < 0.1:
        del content[key]
    elif how < 0.2 and isinstance(content, list):
        content.append(content[key])
    elif how < 0.25 and isinstance(content, dict):
        content[rng.choice(("", "x", key + key))] = content.pop(key)
    else:
        content[key] = _with_strange(content[key], rng)
    return content


def attempt(kind: Kind, root: pathlib.Path) -> str:
    """Reads a folder; returns what was raised that should not have been, or nothing."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"still reading after {_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        kind.read(root)
    except kind.refusals:
        return ""
    except Exception:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


class Apart:
    """A process that reads in place of this one, and is replaced if it dies."""

    def __init__(self, kind: Kind):
        """Starts none yet; see `attempt`."""
        self._kind = kind
        self._process: Any = None

    def attempt(self, root: pathlib.Path) -> str | None:
        """Does as `attempt` does, or returns None if the process died."""
        context = multiprocessing.get_context("spawn")
        if self._process is None:
            self._channel, other = context.Pipe()
            self._process = context.Process(target=_answer, args=(self._kind, other), daemon=True)
            self._process.start()
            other.close()
        self._channel.send(root)
        try:
            if self._channel.poll(2 * _SECONDS):
                return self._channel.recv()
            found = f"hangs where no signal reaches it, after {2 * _SECONDS} s"
        except (EOFError, ConnectionResetError):
            found = None
        self.end()
        return found

    def end(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _answer(kind: Kind, channel: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    while True:
        channel.send(attempt(kind, channel.recv()))


def fuzz(name: str, root: pathlib.Path, seconds: float, rng: random.Random) -> Counter[str]:
    """Damages one kind of file for a while; returns counts of rounds, finds and deaths."""
    kind, counts, seen = KINDS[name], Counter[str](), set()
    apart = Apart(kind)
    good = root / "good"
    good.mkdir()
    kind.build(good)
    files = sorted(p for glob in kind.damaged for p in good.glob(glob) if p.is_file())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        file = rng.choice(files)
        data = file.read_bytes()
        broken = damage(data, rng)
        file.write_bytes(broken)
        found = apart.attempt(good) if kind.apart else attempt(kind, good)
        file.write_bytes(data)
        counts["rounds"] += 1
        if found is None:
            counts["deaths"] += 1
            continue
        where = found.strip().splitlines()[-3:] if found else []
        if found and tuple(where[:1]) not in seen:
            seen.add(tuple(where[:1]))
            counts["finds"] += 1
            _keep(name, file.relative_to(good), broken)
            print(f"{name}: {file.relative_to(good)}\n{found}", file=sys.stderr, flush=True)
    apart.end()
    shutil.rmtree(good)
    return counts


def _keep(name: str, file: pathlib.Path, data: bytes) -> None:
    """Adds a damaged file to the corpus, with what it takes the place of in its name."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()[:8]
    (folder / f"{digest}--{str(file).replace('/', '--')}").write_bytes(data)


def main() -> None:
    """Parses the command line and damages each kind in turn."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for name in options.kinds:
        with tempfile.TemporaryDirectory() as root:
            share = 60 * options.minutes / len(options.kinds)
            counts = fuzz(name, pathlib.Path(root), share, random.Random(f"{options.seed}{name}"))
        print(_line(name, counts), flush=True)
        total += counts
    print(_line("all", total))


def _line(name: str, counts: Counter[str]) -> str:
    return f"{name:14}" + "".join(f"{counts[w]:8} {w}" for w in ("rounds", "finds", "deaths"))


if __name__ == "__main__":
    main()
