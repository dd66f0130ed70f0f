"""The tables of a vote store, as steps from each version of the schema to the next, and what is asked of them.

A store's version is SQLite's `user_version`. A step is never changed once it is released; what changes is a further step.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from diffalign.core.errors import TableError

# Every statement of a step, in order; the number of steps is the newest version.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, created REAL NOT NULL)",
        "CREATE TABLE prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",
        # A picture is a file of the folder beside the store, named by its hash; a model drew it from a seed, as far as that is known.
        """CREATE TABLE pictures (
            id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL REFERENCES prompts, file TEXT NOT NULL,
            model TEXT NOT NULL, seed INTEGER NOT NULL, added REAL NOT NULL, UNIQUE (prompt, file, model, seed))""",
        # Two pictures of one prompt that can be compared, and how often they were.
        """CREATE TABLE pairs (
            id INTEGER PRIMARY KEY, prompt INTEGER NOT NULL REFERENCES prompts,
            first INTEGER NOT NULL REFERENCES pictures, second INTEGER NOT NULL REFERENCES pictures,
            times_shown INTEGER NOT NULL DEFAULT 0, UNIQUE (first, second))""",
        # What a user was asked: the pictures lie in `shown_pictures`, position 0 on the left. `pair` is NULL for a ranking.
        """CREATE TABLE shown (
            id TEXT PRIMARY KEY, user INTEGER NOT NULL REFERENCES users, prompt INTEGER NOT NULL REFERENCES prompts,
            pair INTEGER REFERENCES pairs, repeats TEXT REFERENCES shown, at REAL NOT NULL)""",
        """CREATE TABLE shown_pictures (
            shown TEXT NOT NULL REFERENCES shown, position INTEGER NOT NULL, picture INTEGER NOT NULL REFERENCES pictures,
            PRIMARY KEY (shown, position))""",
        # Answers are never changed or removed: one that no longer counts has the time of its withdrawal.
        """CREATE TABLE votes (
            id INTEGER PRIMARY KEY AUTOINCREMENT, shown TEXT NOT NULL REFERENCES shown, voter INTEGER NOT NULL REFERENCES users,
            answer TEXT NOT NULL, ranks TEXT NOT NULL, reasons TEXT NOT NULL, second_answer TEXT NOT NULL,
            at REAL NOT NULL, withdrawn REAL)""",
        "CREATE UNIQUE INDEX one_vote_counts ON votes (shown) WHERE withdrawn IS NULL",
        "CREATE INDEX shown_to ON shown (user, pair)",
        "CREATE INDEX shown_of ON shown (user, prompt)",
        "CREATE INDEX pictures_of ON pictures (prompt)",
    ),
    (
        "ALTER TABLE votes ADD COLUMN second_question TEXT NOT NULL DEFAULT ''",
        "CREATE INDEX pairs_of ON pairs (prompt, times_shown)",
        "CREATE INDEX shown_again ON shown (repeats) WHERE repeats IS NOT NULL",
        "CREATE INDEX counted_of ON votes (voter, answer) WHERE withdrawn IS NULL",
    ),
)


def migrate(database: sqlite3.Connection, path: Path) -> None:
    """Bring the tables to the newest version, each step in a transaction. Raises TableError for a store of a newer diffalign."""
    version = version_of(database, path)
    for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
        database.execute("BEGIN IMMEDIATE")
        if version_of(database, path) < number:  # another process may have made the step meanwhile
            for statement in step:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {number}")
        database.execute("COMMIT")


def version_of(database: sqlite3.Connection, path: Path) -> int:
    """Return the version of a store's tables. Raises TableError for a file that is no vote store, or of a newer version."""
    try:
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise TableError(f"{path}: no vote store ({error}); expected a file that `diffalign app` made") from error
    if version > len(MIGRATIONS):
        raise TableError(f"{path}: a vote store of version {version}; this diffalign reads up to {len(MIGRATIONS)}, a newer one reads it")
    if (version == 0 and names) or (version > 0 and "shown" not in names):
        raise TableError(f"{path}: a SQLite file with other tables ({', '.join(sorted(names)[:5])}); expected a vote store")
    return version


PICTURES_BY_SEED = "SELECT seed, file FROM pictures JOIN prompts ON prompts.id = prompt WHERE text = ? AND model = ? ORDER BY pictures.id"
COUNT = "SELECT COUNT(*) FROM pictures JOIN prompts ON prompts.id = prompt WHERE text = ? AND model = ?"
# Two pictures of a prompt with the same pixels are no pair.
PAIR_WITH_EARLIER = """INSERT INTO pairs (prompt, first, second)
    SELECT prompt, id, ?1 FROM pictures WHERE prompt = ?2 AND id < ?1 AND file <> ?3"""
# Pictures of two models from one seed.
PAIR_OF_SEED = f"{PAIR_WITH_EARLIER} AND seed = ?4 AND model <> ?5"
# Two pictures of a model by their files, unless they are one.
PAIR_OF_FILES = """INSERT OR IGNORE INTO pairs (prompt, first, second)
    SELECT prompt, MIN(id), MAX(id) FROM pictures WHERE prompt = ?1 AND model = ?2 AND file IN (?3, ?4)
    GROUP BY prompt HAVING COUNT(*) = 2"""
# Questions that wait for an answer, of two pictures (?2 = 0) or of a ranking (?2 = 1).
UNANSWERED = """SELECT id FROM shown WHERE user = ?1 AND (pair IS NULL) = ?2
    AND NOT EXISTS (SELECT 1 FROM votes WHERE votes.shown = shown.id AND withdrawn IS NULL) ORDER BY at, rowid LIMIT ?3"""
# How many pairs a user was shown, and how many there are.
PAIRS_SHOWN = "SELECT (SELECT COUNT(DISTINCT pair) FROM shown WHERE user = ? AND pair IS NOT NULL), (SELECT COUNT(*) FROM pairs)"
# Prompts that have pairs: those that a user saw least come first, and of these the ones with a pair that was shown least.
_PROMPTS = "SELECT id, text FROM prompts {} WHERE EXISTS (SELECT 1 FROM pairs WHERE pairs.prompt = prompts.id) ORDER BY {} RANDOM()"
_OF_USER = "LEFT JOIN (SELECT prompt, COUNT(*) AS times FROM shown WHERE user = ?1 AND pair IS {} GROUP BY prompt) ON prompt = id"
_LEAST_SHOWN = "(SELECT MIN(times_shown) FROM pairs WHERE pairs.prompt = prompts.id)"
PROMPTS_IN_ORDER = {
    "balanced": _PROMPTS.format(_OF_USER.format("NOT NULL"), f"IFNULL(times, 0), {_LEAST_SHOWN},"),
    "random": _PROMPTS.format("", "?1 IS NULL,"),  # the user is not asked for, only named
}
WAS_SHOWN = "SELECT 1 FROM shown WHERE user = ? AND pair = ?"
OPEN_PAIRS = """SELECT pairs.id, a.id, a.file, a.model, a.seed, b.id, b.file, b.model, b.seed
    FROM pairs JOIN pictures a ON a.id = first JOIN pictures b ON b.id = second
    WHERE pairs.prompt = ?2 AND NOT EXISTS (SELECT 1 FROM shown WHERE shown.user = ?1 AND shown.pair = pairs.id)
    ORDER BY times_shown, RANDOM() LIMIT ?3"""
PROMPTS_TO_RANK = _PROMPTS.format(_OF_USER.format("NULL"), "IFNULL(times, 0),")
# Pictures of a prompt that a user has not ranked.
UNRANKED = """SELECT id, file FROM pictures WHERE prompt = ?2 AND id NOT IN (
        SELECT picture FROM shown JOIN shown_pictures ON shown_pictures.shown = shown.id
        WHERE shown.user = ?1 AND shown.prompt = ?2 AND shown.pair IS NULL)
    ORDER BY RANDOM()"""
SHOWN_AND_REPEATED = "SELECT COUNT(*), COUNT(repeats) FROM shown WHERE user = ? AND pair IS NOT NULL"
# A decided question of a user with at least five later ones, that was not repeated and is no repeat itself.
REPEATABLE = """SELECT shown.id FROM shown JOIN votes ON votes.shown = shown.id AND withdrawn IS NULL
    WHERE shown.user = ?1 AND pair IS NOT NULL AND repeats IS NULL AND answer IN ('left', 'right')
    AND NOT EXISTS (SELECT 1 FROM shown again WHERE again.repeats = shown.id)
    AND shown.rowid <= (SELECT later.rowid FROM shown later WHERE later.user = ?1 ORDER BY later.rowid DESC LIMIT 1 OFFSET 5)
    ORDER BY RANDOM() LIMIT 1"""
# How many repeats a user answered with the same picture, and how many were decided both times; the sides were exchanged.
CONSISTENCY = """SELECT COALESCE(SUM(first.answer <> second.answer), 0), COUNT(*) FROM shown JOIN users ON users.id = user
    JOIN votes first ON first.shown = repeats AND first.withdrawn IS NULL AND first.answer IN ('left', 'right')
    JOIN votes second ON second.shown = shown.id AND second.withdrawn IS NULL AND second.answer IN ('left', 'right')
    WHERE repeats IS NOT NULL AND users.name = ?"""
ANSWERED = """SELECT answer, COUNT(*) FROM votes JOIN users ON users.id = voter WHERE withdrawn IS NULL AND users.name = ?
    GROUP BY answer"""
SHOW = "INSERT INTO shown VALUES (?, ?, (SELECT id FROM prompts WHERE text = ?), ?, ?, ?)"
QUESTION = """SELECT users.name, prompts.text, repeats FROM shown JOIN users ON users.id = user JOIN prompts ON prompts.id = prompt
    WHERE shown.id = ?"""
PICTURES_OF = """SELECT pictures.id, file, model, seed FROM shown_pictures JOIN pictures ON pictures.id = picture
    WHERE shown = ? ORDER BY position"""
VOTE = """INSERT INTO votes (shown, voter, answer, ranks, reasons, second_answer, at, second_question) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
LAST_VOTE = """SELECT votes.id, shown FROM votes JOIN shown ON shown.id = votes.shown
    WHERE voter = ? AND (pair IS NULL) = ? AND withdrawn IS NULL ORDER BY votes.id DESC LIMIT 1"""
VOTES = """SELECT shown.id, answer, ranks, reasons, second_answer, votes.at, second_question FROM votes JOIN shown ON shown.id = votes.shown
    JOIN users ON users.id = shown.user WHERE withdrawn IS NULL AND (users.name = ?1 OR ?1 IS NULL) AND (shown.id = ?2 OR ?2 IS NULL)
    ORDER BY votes.id"""
# The pictures of comparisons that were decided, the one on the left first.
DECIDED = """SELECT answer, a.id, a.file, a.model, a.seed, b.id, b.file, b.model, b.seed FROM votes JOIN shown ON shown.id = votes.shown
    JOIN users ON users.id = shown.user
    JOIN shown_pictures l ON l.shown = shown.id AND l.position = 0 JOIN pictures a ON a.id = l.picture
    JOIN shown_pictures r ON r.shown = shown.id AND r.position = 1 JOIN pictures b ON b.id = r.picture
    WHERE withdrawn IS NULL AND answer IN ('left', 'right') AND (users.name = ?1 OR ?1 IS NULL) ORDER BY votes.id"""
# The pictures of a prompt's answered questions, the one on the left first.
ANSWERED_OF_PROMPT = """SELECT shown.id, answer, ranks, file FROM votes JOIN shown ON shown.id = votes.shown
    JOIN prompts ON prompts.id = shown.prompt JOIN shown_pictures ON shown_pictures.shown = shown.id
    JOIN pictures ON pictures.id = picture WHERE withdrawn IS NULL AND prompts.text = ? ORDER BY votes.id, position"""
# Of pairs that were ranked among others, too, a user has seen both pictures.
RANKED_PAIRS = """UPDATE pairs SET times_shown = times_shown + 1 WHERE first IN (SELECT picture FROM shown_pictures WHERE shown = ?1)
    AND second IN (SELECT picture FROM shown_pictures WHERE shown = ?1)"""
