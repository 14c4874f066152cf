-- People who own tasks.
CREATE TABLE users (
    id            uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    email         text        NOT NULL,
    password_hash text        NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT users_email_key UNIQUE (email)
);

COMMENT ON TABLE users IS 'People who own tasks';
COMMENT ON COLUMN users.password_hash IS 'A PHC string, for example $argon2id$v=19$…; never a password';
