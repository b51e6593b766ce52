-- name: is_front
-- Whether this database is a front.
SELECT EXISTS (SELECT FROM accounting.front);

-- name: make_front
-- Makes this database a front.
INSERT INTO accounting.front DEFAULT VALUES ON CONFLICT DO NOTHING;

-- name: has_own_books
-- Whether anything was captured into this database.
SELECT EXISTS (SELECT FROM accounting.sources);

-- name: create_extension
-- Foreign tables over other Postgres servers.
CREATE EXTENSION IF NOT EXISTS postgres_fdw;

-- name: let_owner_use_extension
-- So that the owner of the schema may make foreign servers.
GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO turn_accounting_owner;

-- name: become_owner
-- Takes the owner's role for this transaction.
SET LOCAL ROLE turn_accounting_owner;

-- name: read_cells
-- The cells of this front, by name.
SELECT cell_id, cell, url, revision, joined_at FROM accounting.cells ORDER BY cell;

-- name: cell_password
-- The password of the front's login to a cell.
SELECT accounting.cell_password(:cell);

-- name: identity_key
-- The key of this installation.
SELECT identity_key FROM accounting.installation;

-- name: installation_uri
-- The name of this installation: a hash of its key.
SELECT reporting.feed_source();

-- name: database_collation
-- How this database sorts texts.
SELECT concat_ws(' ', datcollate, datctype, datlocprovider) FROM pg_database
WHERE datname = current_database();

-- name: read_membership
-- The front of this cell, and the cell's name there.
SELECT front, cell FROM accounting.membership;

-- name: has_users
-- Whether any name was made into a key.
SELECT EXISTS (SELECT FROM accounting.users) OR EXISTS (SELECT FROM accounting.sources);

-- name: set_identity_key
-- Gives this database the key of the installation. The owner may.
UPDATE accounting.installation SET identity_key = :key;

-- name: join_front
-- Records the front of this cell.
INSERT INTO accounting.membership (front, cell) VALUES (:front, :cell)
ON CONFLICT (id) DO UPDATE SET front = excluded.front, cell = excluded.cell;

-- name: leave_front
-- Forgets the front of this cell.
DELETE FROM accounting.membership WHERE front = :front;

-- name: read_sources
-- The sources of this cell, with the numbers that are in the ids of their sessions.
SELECT source, source_id FROM accounting.sources
UNION ALL SELECT former_name, source_id FROM accounting.former_source_names;

-- name: free_cell_id
-- The smallest number that no cell of this front has.
SELECT min(n) FROM generate_series(1, 1023) n
WHERE n NOT IN (SELECT cell_id FROM accounting.cells);

-- name: add_cell
-- Records a cell, or what is new of it.
INSERT INTO accounting.cells (cell_id, cell, url, revision)
VALUES (:cell_id, :cell, :url, :revision)
ON CONFLICT (cell_id) DO UPDATE SET url = excluded.url, revision = excluded.revision;

-- name: forget_cell
-- Forgets a cell.
DELETE FROM accounting.cells WHERE cell = :cell;

-- name: import_cell
-- Makes the foreign tables of a cell.
SELECT accounting.import_cell(:cell);

-- name: define_front_views
-- Defines the views over the cells.
SELECT accounting.define_front_views();
