-- What is to be done. `text` with a CHECK rather than an enum type for the status: a value can be added or retired inside
-- an ordinary transaction.
CREATE TABLE tasks (
    id          uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id     uuid        NOT NULL,
    title       text        NOT NULL,
    description text,
    status      text        NOT NULL DEFAULT 'todo',
    due_date    timestamptz,
    metadata    jsonb       NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tasks_user_id_fkey FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE,
    CONSTRAINT tasks_status_check CHECK (status IN ('todo', 'in_progress', 'blocked', 'done', 'cancelled'))
);

COMMENT ON TABLE tasks IS 'What is to be done, and by whom';
COMMENT ON COLUMN tasks.metadata IS 'Labels, priority, estimate, checklist and whatever else a client keeps with a task';

-- PostgreSQL makes no index for a foreign key by itself; without it each deletion of a user reads all tasks.
CREATE INDEX tasks_user_id_idx ON tasks (user_id);

-- For containment: metadata @> '{"priority": "high"}'. jsonb_path_ops serves @> with a smaller and faster index than the
-- default operator class, which would also serve key existence (?).
CREATE INDEX tasks_metadata_idx ON tasks USING gin (metadata jsonb_path_ops);

-- For full-text search. An index on an expression keeps the table as it is drawn in the schema's diagram; a query uses
-- it when it repeats the expression:
--   WHERE to_tsvector('english', coalesce(title, '') || ' ' || coalesce(description, '')) @@ websearch_to_tsquery('english', …)
-- The configuration is named, because with one argument to_tsvector depends on a setting and can't be indexed.
CREATE INDEX tasks_search_idx ON tasks
    USING gin (to_tsvector('english', coalesce(title, '') || ' ' || coalesce(description, '')));
