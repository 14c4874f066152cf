-- Tells listeners (LISTEN task_changes) of each change of a task, at commit, as JSON:
--   {"op": "insert" | "update" | "delete", "id": "…", "user_id": "…", "status": "…"}
-- It carries keys and no text, so it stays far below the 8000 bytes that a payload may have; who needs more reads the row.
CREATE FUNCTION notify_task_change() RETURNS trigger
    LANGUAGE plpgsql
AS $$
DECLARE
    task tasks%ROWTYPE;
BEGIN
    IF TG_OP = 'DELETE' THEN
        task := OLD;
    ELSE
        task := NEW;
    END IF;
    PERFORM pg_notify(
        'task_changes',
        json_build_object('op', lower(TG_OP), 'id', task.id, 'user_id', task.user_id, 'status', task.status)::text
    );
    RETURN NULL;
END
$$;

-- SET LOCAL taskflow.silent = 'on' keeps a bulk load silent. The condition stands here rather than in the function, so
-- that a silent row costs one look at a setting and neither a queued event nor a call.
CREATE TRIGGER tasks_notify_change
    AFTER INSERT OR UPDATE OR DELETE ON tasks
    FOR EACH ROW
    WHEN (current_setting('taskflow.silent', true) IS DISTINCT FROM 'on')
    EXECUTE FUNCTION notify_task_change();
