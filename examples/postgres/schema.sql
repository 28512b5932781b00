CREATE TABLE city (name text PRIMARY KEY, population integer NOT NULL);
INSERT INTO city VALUES ('Bern', 134000), ('Graz', 292000), ('Turin', 848000);
