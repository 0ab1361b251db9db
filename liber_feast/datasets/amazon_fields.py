"""The fields of Amazon's item metadata, as they were scraped, made text, categories, a price or a decade.

The functions take any value that JSON or Parquet can hold and never raise; what cannot be used is None.
"""

import html
import math
import re
from contextlib import suppress
from decimal import Decimal

from liber_feast.datasets.data_set import decade_of

_SCRIPT = "getTime"
"""Some scraped titles and brands are the page's JavaScript; all of that contains this word."""
_TAG = re.compile(r"</?(?:a|b|br|div|em|font|h\d|i|img|li|p|span|strong|sub|sup|u|ul)\b[^<>]*>", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character: JSON can spell it, UTF-8 cannot hold it."""


def is_id(value: object) -> bool:
    """Return whether `value` is text that can be an item's id."""
    return isinstance(value, str) and value != "" and _SURROGATE.search(value) is None


def text(value: object) -> str | None:
    """Return one line of text without tags, entities and outer blanks; None for no text and for a page's script."""
    if not isinstance(value, str) or _SCRIPT in value:
        return None
    plain = _TAG.sub(" ", value)
    with suppress(ValueError):  # an entity of thousands of digits: the text stays as it was written
        plain = html.unescape(plain)
    return re.sub(r"\s+", " ", _SURROGATE.sub("", plain)).strip() or None


def brand(value: object) -> str | None:
    """Return the brand; of books it is the author, written as the link 'Visit Amazon's NAME Page'."""
    known = text(value)
    return re.sub(r"^Visit Amazon's (.+) Page$", r"\1", known) if known else None


def categories(value: object, *, features: object = None) -> list[str]:
    """Return each category once; one text holds a path that is split at '>' and '|' ('&' and ',' are in names).

    The 2018 lists of clothing go on with the item's own `features`, sentences that are no categories.
    """
    sentences = features if isinstance(features, list) else []
    if isinstance(value, str):
        parts: list[object] = [*re.split(r"[>|]", _TAG.sub(" ", value))]
    else:
        parts = value if isinstance(value, list) else []
    return list(dict.fromkeys(name for part in parts if part not in sentences and (name := text(part))))


def price(value: object) -> float | None:
    """Return the price in dollars; None for a range, for text and for what the scraper took instead of a price."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*\$?\s*(\d[\d,]*(?:\.\d+)?)\s*", value)
        value = Decimal(match[1].replace(",", "")) if match else None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def decade(details: object) -> str | None:
    """Return the decade in which a book's publisher brought it out: 'Harper; Reprint edition (May 1, 2001)'."""
    by_name = {str(name).strip(" :\n"): value for name, value in details.items()} if isinstance(details, dict) else {}
    return decade_of(re.findall(r"\((?:\w+ (?:\d{1,2}, )?)?((?:1[5-9]|20)\d\d)\)", str(by_name.get("Publisher", ""))))
