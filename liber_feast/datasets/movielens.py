"""MovieLens 100K (`u.data`), 1M (`ratings.dat`) and the CSV releases (`ratings.csv`: latest, 20M, 25M, 32M).

The first two are Latin-1 and their counts are published; a CSV release states its counts in its README.txt.
Movies get as period the decade of the year in their title, else (100K) of their release date.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.behavior import EVENT_TIME, ITEM, RATING, USER, RatingScale
from liber_feast.datasets.data_set import CATEGORIES, PERIOD, PROFILE, TITLE, ExpectedCounts, ParsedSource, decade_of
from liber_feast.datasets.source_file import YEAR_1995, find_file, read_delimited, reading, the_file, unix_times
from liber_feast.errors import DataSetError

ML_100K = ExpectedCounts(behaviors=100_000, users=943, items=1_682)
ML_1M = ExpectedCounts(behaviors=1_000_209, users=6_040, items=3_883)
FILES_100K = ("u.data", "u.item", "u.user", "u.genre")
FILES_1M = ("ratings.dat", "movies.dat", "users.dat")
FILES_CSV = ("ratings.csv", "movies.csv")
PROMPT = "movielens"
NO_GENRES = "(no genres listed)"
UNKNOWN_GENRE = "unknown"
AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56 or older"}
"""Age groups of MovieLens 1M by their code, which is their lowest age; also applied to the ages of 100K."""
GENDERS = {"M": "male", "F": "female"}
_OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|doctor/health care"
    "|executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|retired|sales/marketing|scientist"
    "|self-employed|technician/engineer|tradesman/craftsman|unemployed|writer"
)
OCCUPATIONS = tuple(_OCCUPATIONS.split("|"))
"""Those of MovieLens 1M by their code."""
_YEAR = re.compile(r"\((\d{4})(?:\s*[-–]\s*\d{0,4})?\)")
_STATED = re.compile(
    r"contains\s+(N)\s+ratings\b.*?\bacross\s+(N)\s+movies\b.*?\bcreated\s+by\s+(N)\s+users\b".replace(
        "N", r"\d[\d,]{0,20}"
    ),
    re.DOTALL,
)


def read_100k(folder: Path, *, expected: ExpectedCounts | None = ML_100K) -> ParsedSource:
    """Parse MovieLens 100K: u.data, u.item, u.user and u.genre. With `expected` None its counts are not checked."""
    paths = {name: the_file(folder, name) for name in FILES_100K}
    genres = _genre_names(paths["u.genre"])
    dates = {"release_date": pa.string(), "video_release_date": pa.string(), "url": pa.string()}
    flags = {f"genre {genre}": pa.int8() for genre in genres}
    movies = read_delimited(
        paths["u.item"],
        columns={ITEM: pa.int64(), TITLE: pa.string(), **dates, **flags},
        delimiter="|",
        encoding="latin-1",
    )
    people = read_delimited(
        paths["u.user"],
        columns={
            USER: pa.int64(),
            "age": pa.int64(),
            "gender": pa.string(),
            "occupation": pa.string(),
            "zip": pa.string(),
        },
        delimiter="|",
    )
    return ParsedSource(
        name="ml-100k",
        behaviors=read_ratings(paths["u.data"], delimiter="\t"),
        items=_items(
            movies,
            categories=_flagged(movies.select(list(flags)), genres=genres, path=paths["u.item"]),
            dates=movies["release_date"].to_pylist(),
        ),
        users=_users(people, occupations=people["occupation"].to_pylist(), exact_ages=True),
        scale=RatingScale(low=1.0, high=5.0),
        prompt=PROMPT,
        item_text="categories",
        files={"behaviors": str(paths["u.data"]), "items": str(paths["u.item"]), "users": str(paths["u.user"])},
        expected=expected,
        users_are_closed=True,
    )


def read_1m(folder: Path, *, expected: ExpectedCounts | None = ML_1M) -> ParsedSource:
    """Parse MovieLens 1M: ratings.dat, movies.dat and users.dat. With `expected` None its counts are not checked."""
    ratings, movies_path, users_path = (the_file(folder, name) for name in FILES_1M)
    movies = read_delimited(
        movies_path,
        columns={ITEM: pa.int64(), TITLE: pa.string(), "genres": pa.string()},
        delimiter="::",
        encoding="latin-1",
    )
    people = read_delimited(
        users_path,
        columns={
            USER: pa.int64(),
            "gender": pa.string(),
            "age": pa.int64(),
            "occupation": pa.int64(),
            "zip": pa.string(),
        },
        delimiter="::",
        encoding="latin-1",
    )
    return ParsedSource(
        name="ml-1m",
        behaviors=read_ratings(ratings, delimiter="::"),
        items=_items(movies, categories=_split(movies["genres"])),
        users=_users(people, occupations=_occupations(people["occupation"], path=users_path), exact_ages=False),
        scale=RatingScale(low=1.0, high=5.0),
        prompt=PROMPT,
        item_text="categories",
        files={"behaviors": str(ratings), "items": str(movies_path), "users": str(users_path)},
        expected=expected,
        users_are_closed=True,
    )


def read_csv_release(folder: Path) -> ParsedSource:
    """Parse ratings.csv and movies.csv; the counts are checked against README.txt where it states them."""
    ratings, movies_path = (the_file(folder, name) for name in FILES_CSV)
    movies = read_delimited(
        movies_path,
        columns={"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()},
        delimiter=",",
        header=True,
    ).rename_columns([ITEM, TITLE, "genres"])
    name, expected = _stated_counts(folder)
    unchecked = "no README.txt states how many ratings there are, so their number could not be checked"
    return ParsedSource(
        name=name,
        behaviors=read_ratings(ratings, delimiter=",", header=True),
        items=_items(movies, categories=_split(movies["genres"])),
        users=None,
        scale=RatingScale(low=0.5, high=5.0),
        prompt=PROMPT,
        item_text="categories",
        files={"behaviors": str(ratings), "items": str(movies_path), "users": str(ratings)},
        expected=expected,
        notes=() if expected else (unchecked,),
    )


def _stated_counts(folder: Path) -> tuple[str, ExpectedCounts | None]:
    """Return the release's name and the counts that its README.txt states; the folder's name and None without one."""
    path, name = find_file(folder, "README.txt"), folder.resolve().name
    if path is None:
        return name, None
    with reading(path, expected="the README of a MovieLens release"):
        text: str = pa.input_stream(str(path)).read().decode("utf-8", errors="replace")
    named = re.search(r"This dataset \(([\w.-]+)\)", text)
    stated = _STATED.search(text)
    if stated is None:
        return name, None
    behaviors, items, users = (int(number.replace(",", "")) for number in stated.groups())
    return named[1] if named else name, ExpectedCounts(behaviors=behaviors, users=users, items=items)


def read_ratings(path: Path, *, delimiter: str, header: bool = False) -> pa.Table:
    """Return the ratings of a file of user, movie, rating and unix time."""
    names = ("userId", "movieId", "rating", "timestamp")
    kinds = (pa.int64(), pa.int64(), pa.float64(), pa.int64())
    rows = read_delimited(path, columns=dict(zip(names, kinds, strict=True)), delimiter=delimiter, header=header)
    return pa.table(
        {
            USER: rows["userId"].cast(pa.string()),
            ITEM: rows["movieId"].cast(pa.string()),
            RATING: rows["rating"],
            EVENT_TIME: unix_times(rows["timestamp"], path=path, earliest=YEAR_1995),
        }
    )


def _genre_names(path: Path) -> list[str]:
    """Return the genres in the order of the flags of u.item; the file ends in an empty line, which is skipped."""
    rows = read_delimited(path, columns={"name": pa.string(), "index": pa.int64()}, delimiter="|")
    names: list[str] = rows["name"].to_pylist()
    if len(set(names)) < len(names):
        raise DataSetError(f"{path}: found a genre twice in {', '.join(names)}. Get the original file again.")
    if rows["index"].to_pylist() != list(range(len(rows))):
        raise DataSetError(
            f"{path}: found the genre numbers {rows['index'].to_pylist()}, expected 0, 1, 2 and so on."
            " Get the original file again."
        )
    return names


def _flagged(flags: pa.Table, *, genres: list[str], path: Path) -> list[list[str]]:
    """Return the genres of each movie whose flags (one column a genre) are 1."""
    columns = [column.to_pylist() for column in flags.columns]
    for row, marks in enumerate(zip(*columns, strict=True)):
        if not set(marks) <= {0, 1}:
            raise DataSetError(
                f"{path}: found a genre flag other than 0 and 1 in row {row}. Get the original file again."
            )
    return [[genre for genre, mark in zip(genres, marks, strict=True) if mark] for marks in zip(*columns, strict=True)]


def _occupations(codes: pa.ChunkedArray, *, path: Path) -> list[str]:
    """Return the occupations of MovieLens 1M that stand behind the codes."""
    for row, code in enumerate(codes.to_pylist()):
        if code is None or not 0 <= code < len(OCCUPATIONS):
            raise DataSetError(
                f"{path}: found occupation {code!r} in row {row}, expected 0 to {len(OCCUPATIONS) - 1}."
                " Get the original file again."
            )
    return [OCCUPATIONS[code] for code in codes.to_pylist()]


def _split(genres: pa.ChunkedArray) -> list[list[str]]:
    return [text.split("|") if text else [] for text in genres.to_pylist()]


def _items(movies: pa.Table, *, categories: list[list[str]], dates: list[str | None] | None = None) -> pa.Table:
    titles = movies[TITLE].to_pylist()
    released = dates or [None] * len(titles)
    kept = [[name for name in row if name not in (NO_GENRES, UNKNOWN_GENRE, "")] for row in categories]
    return pa.table(
        {
            ITEM: movies[ITEM].cast(pa.string()),
            TITLE: pa.array([title or None for title in titles], pa.string()),
            CATEGORIES: pa.array(kept, pa.list_(pa.string())),
            PERIOD: pa.array([_decade(*pair) for pair in zip(titles, released, strict=True)], pa.string()),
        }
    )


def _decade(title: str | None, date: str | None) -> str | None:
    """Return the decade of the last year in parentheses in `title`, else of a `date` like 01-Jan-1995: '1990s'."""
    return decade_of(_YEAR.findall(title or "") or re.findall(r"-(\d{4})$", date or ""))


def _users(people: pa.Table, *, occupations: list[str], exact_ages: bool) -> pa.Table:
    """Return profile, age_group, gender, occupation and the first character of the zip code of each user."""
    genders = [GENDERS.get(code) for code in people["gender"].to_pylist()]
    ages = people["age"].to_pylist()
    groups = [None if age is None else AGES[max(code for code in AGES if code <= max(age, 1))] for age in ages]
    shown = [str(age) if exact_ages and age is not None else group for age, group in zip(ages, groups, strict=True)]
    profiles = [
        ", ".join(part for part in (_age_text(age), gender, occupation) if part)
        for age, gender, occupation in zip(shown, genders, occupations, strict=True)
    ]
    return pa.table(
        {
            USER: people[USER].cast(pa.string()),
            PROFILE: pa.array(profiles, pa.string()),
            "age_group": pa.array(groups, pa.string()),
            "gender": pa.array(genders, pa.string()),
            "occupation": pa.array(occupations, pa.string()),
            "zip_prefix": pc.utf8_slice_codeunits(people["zip"], 0, 1),
        }
    )


def _age_text(age: str | None) -> str:
    """Return '25-34 years old' of a number or range, and 'under 18' as it is."""
    return f"{age} years old" if age and re.fullmatch(r"[\d-]+", age) else age or ""
