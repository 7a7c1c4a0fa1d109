"""The output of one execution, kept by position in a bounded buffer. Pure: it decides, its owner wakes and waits.

A position counts bytes of payload of all items in order of production. While a reader is attached, the producer is held
back by the fastest reader (room); slower readers, and whoever comes later than the buffer reaches back, get gaps.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

# Source of a chunk: 1 stdout, 2 stderr (OutputStream); results and errors have their own kinds.
STDOUT, STDERR = 1, 2
# Small writes of one source are one item as long as nobody has had it: an item costs far more than its bytes.
MERGED_BYTES = 16 << 10
ITEM_BYTES = 512
# When a cell ends, this may come in spite of all room being used: the last read for which there was room, what the two
# pipes hold (pump.py) and the error (python_language.py).
UNASKED_BYTES = (256 + 512 + 128) << 10
# Representations of displayed values that one execution may show: what has been dropped of each is remembered.
MAX_RESULTS = 4096
# Where a gap ends behind which nothing comes any more.
NO_END = (1 << 64) - 1

# What the bytes of an item belong to: a stream, or one representation of a result (source, result id, MIME type).
Key = tuple[int | str, int, str]


@dataclass(frozen=True)
class Item:
    """One piece of output. source is STDOUT, STDERR, "result" or "error"; offset counts within the source."""

    position: int
    source: int | str
    offset: int
    data: bytes
    result_id: int = 0
    mime_type: str = ""
    last: bool = False
    is_value: bool = False
    limit_gap: bool = False

    @property
    def end(self) -> int:
        """Position after this item."""
        return self.position + len(self.data)

    @property
    def key(self) -> Key:
        """What its bytes belong to."""
        return self.source, self.result_id, self.mime_type

    @property
    def cost(self) -> int:
        """Bytes that keeping it takes."""
        return len(self.data) + ITEM_BYTES


@dataclass(frozen=True)
class Gap:
    """Bytes of a source that this reader cannot have: [begin, end)."""

    source: int | str
    result_id: int
    begin: int
    end: int
    position: int
    limit: bool = False


@dataclass(frozen=True)
class _Dropped:
    """The last item of a key that is in the buffer no more: where it ended, its number, whether it was a marker."""

    end: int
    position: int
    number: int
    limit: bool


class Reader:
    """One attached stream. position: everything before it was handed over."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.index = 0  # sequence number of the next item
        self.cost = 0  # of every item before that one
        self.sent: dict[Key, int] = {}  # offset up to which it was handed over


class OutputLog:
    """Items of one execution. capacity and chunk sizes in bytes. discarding: stdout and stderr are at their limit."""

    def __init__(self, capacity: int, output_limit: int) -> None:
        self.capacity = capacity
        self._limit = output_limit
        self._items: deque[Item] = deque()
        self._first = 0  # sequence number of _items[0]
        self.size_bytes = 0
        self._dropped: dict[Key, _Dropped] = {}
        self._dropped_position = 0
        self._dropped_cost = 0
        self.position = 0
        self.written = {STDOUT: 0, STDERR: 0}
        self.discarding = False
        self._results = 0  # representations that have begun
        self._hiding = False
        self.readers: set[Reader] = set()

    def attach(self, position: int) -> Reader:
        """A reader from position on. Raises ValueError for a position that has not been produced."""
        if position > self.position:
            raise ValueError("position is beyond the end of the output")
        reader = Reader(position)
        self.readers.add(reader)
        return reader

    def detach(self, reader: Reader) -> None:
        """Forget the reader."""
        self.readers.discard(reader)

    def room(self) -> bool:
        """Whether the producer may go on: always without readers; else while the fastest reader keeps up."""
        if not self.readers:
            return True
        fastest = max(reader.cost for reader in self.readers)
        kept_free = min(UNASKED_BYTES, self.capacity * 7 // 8)
        return self._dropped_cost + self.size_bytes - fastest < self.capacity - kept_free

    def write(self, source: int, data: bytes) -> None:
        """Add output; beyond the limit it is discarded, with one marker."""
        if self.discarding:
            return
        left = self._limit - self.written[STDOUT] - self.written[STDERR]
        kept = data[:left]
        if kept and not self._merge(source, kept):
            self._add(Item(self.position, source, self.written[source], kept))
        self.written[source] += len(kept)
        if len(kept) < len(data):
            self.discarding = True
            self._add(Item(self.position, source, self.written[source], b"", limit_gap=True))

    def _merge(self, source: int, data: bytes) -> bool:
        last = self._items[-1] if self._items else None
        if last is None or last.source != source or last.limit_gap or len(last.data) + len(data) > MERGED_BYTES:
            return False
        if any(reader.index >= self._first + len(self._items) for reader in self.readers):
            return False
        self._items[-1] = replace(last, data=last.data + data)
        self.size_bytes += len(data)
        self.position += len(data)
        return True

    def add_result(self, result_id: int, mime_type: str, offset: int, data: bytes, last: bool, is_value: bool) -> None:
        """Add a part of a rich result. Their bytes are bounded by the buffer alone; beyond MAX_RESULTS one marker."""
        self._results += offset == 0
        if self._results <= MAX_RESULTS:
            self._add(Item(self.position, "result", offset, data, result_id, mime_type, last, is_value))
        elif not self._hiding:
            self._hiding = True
            self._add(Item(self.position, "result", 0, b"", result_id, limit_gap=True))

    def add_error(self, data: bytes) -> None:
        """Add the serialised error that ended the code."""
        self._add(Item(self.position, "error", 0, data))

    def _add(self, item: Item) -> None:
        self._items.append(item)
        self.size_bytes += item.cost
        self.position = item.end
        while self.size_bytes > self.capacity and len(self._items) > 1:
            old = self._items.popleft()
            self._first += 1
            self.size_bytes -= old.cost
            self._dropped_cost += old.cost
            end = NO_END if old.limit_gap else old.offset + len(old.data)
            self._dropped[old.key] = _Dropped(end, old.end, self._first - 1, old.limit_gap)
            self._dropped_position = old.end

    def next(self, reader: Reader) -> Iterator[Item | Gap]:
        """What the reader has not had yet; each thing handed over is counted as had.

        The program may write and items may be dropped at every yield: nothing is iterated that could change.
        """
        while True:
            if reader.index < self._first:
                gaps = self._skip(reader)
                reader.index, reader.cost = self._first, self._dropped_cost
                yield from gaps
                continue
            if reader.index >= self._first + len(self._items):
                return
            item = self._items[reader.index - self._first]
            reader.index += 1
            reader.cost += item.cost
            if item.end < reader.position or (item.end == reader.position and item.data):
                continue  # had before it attached
            skip = max(0, reader.position - item.position)
            reader.position = item.end
            reader.sent[item.key] = item.offset + len(item.data)
            if item.last:
                del reader.sent[item.key]
            yield _tail(item, skip) if skip else item

    def _skip(self, reader: Reader) -> list[Gap]:
        """One gap per key that lost bytes; it may begin early for a reader that attached in the middle of them.

        Only the last one moves the position: who has had only some of them is told the others again.
        """
        lost = [(key, reader.sent.get(key, 0), dropped) for key, dropped in self._dropped.items()]
        lost = [one for one in lost if one[2].number >= reader.index and one[1] < one[2].end]
        lost = [one for one in lost if one[2].position > reader.position or one[2].limit]
        before, reader.position = reader.position, max(reader.position, self._dropped_position)
        for key, _, dropped in lost:
            reader.sent[key] = dropped.end
        gaps = [Gap(key[0], key[1], begin, dropped.end, before, dropped.limit) for key, begin, dropped in lost]
        return [*gaps[:-1], replace(gaps[-1], position=reader.position)] if gaps else []


def _tail(item: Item, skip: int) -> Item:
    return replace(item, position=item.position + skip, offset=item.offset + skip, data=item.data[skip:])
