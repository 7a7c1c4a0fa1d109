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


@dataclass(frozen=True)
class Gap:
    """Bytes of a source that this reader cannot have: [begin, end)."""

    source: int | str
    result_id: int
    begin: int
    end: int
    position: int


class Reader:
    """One attached stream. position: everything before it was handed over."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.index = 0  # sequence number of the next item
        self.sent: dict[tuple[int | str, int], int] = {}  # (source, result id) -> offset up to which it was handed over


class OutputLog:
    """Items of one execution. capacity and chunk sizes in bytes."""

    def __init__(self, capacity: int, output_limit: int) -> None:
        self.capacity = capacity
        self._limit = output_limit
        self._items: deque[Item] = deque()
        self._first = 0  # sequence number of _items[0]
        self.size_bytes = 0
        self._dropped: dict[tuple[int | str, int], int] = {}  # source -> offset up to which items were dropped
        self._dropped_position = 0
        self.position = 0
        self.written = {STDOUT: 0, STDERR: 0}
        self._discarding = False
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
        fastest = max(reader.position for reader in self.readers)
        # An eighth is kept for what a pipe still holds when its program ends: it is taken without asking.
        return self.position - fastest < self.capacity * 7 // 8

    def write(self, source: int, data: bytes) -> None:
        """Add output; beyond the limit it is discarded, with one marker."""
        if self._discarding:
            return
        left = self._limit - self.written[STDOUT] - self.written[STDERR]
        kept = data[:left]
        if kept and not self._merge(source, kept):
            self._add(Item(self.position, source, self.written[source], kept))
        self.written[source] += len(kept)
        if len(kept) < len(data):
            self._discarding = True
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
        """Add a part of a rich result; results do not count against the output limit, the buffer bounds them."""
        self._add(Item(self.position, "result", offset, data, result_id, mime_type, last, is_value))

    def add_error(self, data: bytes) -> None:
        """Add the serialised error that ended the code."""
        self._add(Item(self.position, "error", 0, data))

    def _add(self, item: Item) -> None:
        self._items.append(item)
        self.size_bytes += len(item.data) + ITEM_BYTES
        self.position = item.end
        while self.size_bytes > self.capacity and len(self._items) > 1:
            old = self._items.popleft()
            self._first += 1
            self.size_bytes -= len(old.data) + ITEM_BYTES
            self._dropped[old.source, old.result_id] = old.offset + len(old.data)
            self._dropped_position = old.end

    def next(self, reader: Reader) -> Iterator[Item | Gap]:
        """What the reader has not had yet; each thing handed over is counted as had.

        The program may write and items may be dropped at every yield: nothing is iterated that could change.
        """
        while True:
            if reader.index < self._first:
                gaps = self._skip(reader) if reader.position < self._dropped_position else []
                reader.index = self._first
                yield from gaps
                continue
            if reader.index >= self._first + len(self._items):
                return
            item = self._items[reader.index - self._first]
            reader.index += 1
            if item.end < reader.position or (item.end == reader.position and item.data):
                continue  # had before it attached
            skip = max(0, reader.position - item.position)
            reader.position = item.end
            reader.sent[item.source, item.result_id] = item.offset + len(item.data)
            yield _tail(item, skip) if skip else item

    def _skip(self, reader: Reader) -> list[Gap]:
        """One gap per source that lost bytes; it may begin early for a reader that attached in the middle of them.

        Only the last one moves the position: who has had only some of them is told the others again.
        """
        before, reader.position = reader.position, self._dropped_position
        lost = [(key, reader.sent.get(key, 0), end) for key, end in self._dropped.items()]
        lost = [(key, begin, end) for key, begin, end in lost if begin < end]
        for key, _, end in lost:
            reader.sent[key] = end
        gaps = [Gap(key[0], key[1], begin, end, before) for key, begin, end in lost]
        return [*gaps[:-1], replace(gaps[-1], position=reader.position)] if gaps else []


def _tail(item: Item, skip: int) -> Item:
    return Item(
        item.position + skip,
        item.source,
        item.offset + skip,
        item.data[skip:],
        item.result_id,
        item.mime_type,
        item.last,
        item.is_value,
    )
