-- Which objects there are. Their bytes are files named by `blob` and never change.
CREATE TABLE buckets (
    name       TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    account    TEXT NOT NULL
) STRICT;

-- Text compares by its UTF-8 bytes: S3's own order of keys.
CREATE TABLE objects (
    bucket      TEXT    NOT NULL REFERENCES buckets (name),
    key         TEXT    NOT NULL,
    blob        TEXT    NOT NULL,
    size        INTEGER NOT NULL,
    etag        TEXT    NOT NULL,
    modified_ms INTEGER NOT NULL,
    attributes  TEXT    NOT NULL,
    PRIMARY KEY (bucket, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE uploads (
    id         TEXT    PRIMARY KEY,
    bucket     TEXT    NOT NULL REFERENCES buckets (name),
    key        TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    attributes TEXT    NOT NULL
) STRICT;

CREATE TABLE parts (
    upload      TEXT    NOT NULL REFERENCES uploads (id),
    number      INTEGER NOT NULL,
    blob        TEXT    NOT NULL,
    size        INTEGER NOT NULL,
    etag        TEXT    NOT NULL,
    modified_ms INTEGER NOT NULL,
    checksums   TEXT    NOT NULL,
    PRIMARY KEY (upload, number)
) STRICT, WITHOUT ROWID;
