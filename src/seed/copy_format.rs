//! Rows in the binary format of COPY: a 16-bit count of fields, then each field's length and bytes, all big-endian.

use uuid::Uuid;

use super::rows::{Task, User};

/// What comes before the first row: a signature, no flags, no header extension.
pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What comes after the last row.
pub(super) const TRAILER: &[u8] = &(-1_i16).to_be_bytes();

/// The statement that takes rows written by [`write_user`].
pub(super) const COPY_USERS: &str = "COPY users (id, email, password_hash, created_at) FROM STDIN (FORMAT binary)";
/// The statement that takes rows written by [`write_task`].
pub(super) const COPY_TASKS: &str = "COPY tasks (id, user_id, title, description, status, due_date, metadata, created_at) \
                                     FROM STDIN (FORMAT binary)";

/// Appends a row of `users`.
pub(super) fn write_user(buffer: &mut Vec<u8>, user: &User) {
    buffer.extend_from_slice(&4_i16.to_be_bytes());
    write_uuid(buffer, user.id);
    write_field(buffer, user.email.as_bytes());
    write_field(buffer, user.password_hash.as_bytes());
    write_time(buffer, user.created_at);
}

/// Appends a row of `tasks`.
pub(super) fn write_task(buffer: &mut Vec<u8>, task: &Task) {
    buffer.extend_from_slice(&8_i16.to_be_bytes());
    write_uuid(buffer, task.id);
    write_uuid(buffer, task.user_id);
    write_field(buffer, task.title.as_bytes());
    match &task.description {
        Some(description) => write_field(buffer, description.as_bytes()),
        None => write_null(buffer),
    }
    write_field(buffer, task.status.as_str().as_bytes());
    match task.due_date {
        Some(due_date) => write_time(buffer, due_date),
        None => write_null(buffer),
    }
    write_jsonb(buffer, &task.metadata);
    write_time(buffer, task.created_at);
}

fn write_length(buffer: &mut Vec<u8>, length: usize) {
    let length = i32::try_from(length).expect("a generated value is shorter than 2 GiB");
    buffer.extend_from_slice(&length.to_be_bytes());
}

fn write_field(buffer: &mut Vec<u8>, bytes: &[u8]) {
    write_length(buffer, bytes.len());
    buffer.extend_from_slice(bytes);
}

fn write_null(buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&(-1_i32).to_be_bytes());
}

fn write_uuid(buffer: &mut Vec<u8>, id: Uuid) {
    write_field(buffer, id.as_bytes());
}

/// Appends a timestamptz: microseconds since 2000-01-01T00:00:00Z.
fn write_time(buffer: &mut Vec<u8>, microseconds: i64) {
    write_field(buffer, &microseconds.to_be_bytes());
}

/// Appends JSON text as jsonb, whose binary form is a version, 1, and the text.
fn write_jsonb(buffer: &mut Vec<u8>, text: &[u8]) {
    write_length(buffer, text.len() + 1);
    buffer.push(1);
    buffer.extend_from_slice(text);
}
