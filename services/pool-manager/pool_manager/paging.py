"""Pages of a list that is sorted by name: the token is the last name of the page before. Pure."""

from collections.abc import Iterable

from service_kit.errors import InvalidArgument

DEFAULT_SIZE, MAX_SIZE, MAX_TOKEN = 100, 1000, 256


def page(names: Iterable[str], page_size: int, page_token: str) -> tuple[list[str], str]:
    """The names of one page and the token of the next, empty on the last. Raises InvalidArgument."""
    if not 0 <= page_size <= MAX_SIZE:
        raise InvalidArgument("INVALID_FIELD", f"must be 0 to {MAX_SIZE}", field="page_size")
    if len(page_token) > MAX_TOKEN:
        raise InvalidArgument("INVALID_FIELD", "is not one of ours", field="page_token")
    rest = sorted(name for name in names if name > page_token)
    size = page_size or DEFAULT_SIZE
    chosen = rest[:size]
    return chosen, chosen[-1] if len(rest) > size else ""
