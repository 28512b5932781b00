-- Every record of every kind. AUTOINCREMENT: a number is never given twice, so a cursor stays good
-- when the newest row is deleted.
CREATE TABLE rows (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    kind     TEXT    NOT NULL,
    id       TEXT    NOT NULL,
    account  TEXT    NOT NULL,
    parent   TEXT    NOT NULL,
    revision INTEGER NOT NULL,
    body     TEXT    NOT NULL,
    UNIQUE (kind, id)
) STRICT;

CREATE INDEX rows_by_account ON rows (kind, account, seq);
CREATE INDEX rows_by_parent ON rows (kind, parent, seq);
