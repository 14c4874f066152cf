#!/bin/bash
# Entrypoint of `tfdev/postgres:15-offline`.
#
# Keeps the documented contract of the official `postgres:15-alpine` image, so that the same `docker run`, Compose file
# or CI job works with either: the POSTGRES_* variables and their _FILE forms, PGDATA, the order of the first start,
# /docker-entrypoint-initdb.d, uid and gid 70, `-c` arguments. Where it does more, it says so:
#   - a stop during the first start is obeyed at once (the temporary server is shut down) instead of being ignored;
#   - a password that came from a file does not stay in the environment of the server;
#   - a first start that fails says that the data folder is half made.
set -Eeo pipefail
shopt -s nullglob

readonly INIT_FOLDER=/docker-entrypoint-initdb.d
readonly SOCKET_FOLDER=/var/run/postgresql
readonly SERVER_UID=70 SERVER_GID=70

say() { printf '%s\n' "$*"; }
complain() { printf '%s\n' "$*" >&2; }
fail() {
	complain "error: $1"
	shift
	local line
	for line in "$@"; do complain "       $line"; done
	exit 1
}

# Settles variable $1 from itself, from the file that $1_FILE names, or from the default $2.
settle() {
	local name=$1 file_name=$1_FILE default=${2-} value
	local direct=${!name-} file=${!file_name-}
	if [[ -n $direct && -n $file ]]; then
		fail "both $name and $file_name are set, but only one of them can be used"
	fi
	if [[ -n $file ]]; then
		[[ -r $file ]] || fail "the file \`$file\` that $file_name names cannot be read by $(describe_user)"
		value=$(<"$file")
	else
		value=${direct:-$default}
	fi
	export "$name=$value"
	unset "$file_name"
}

describe_user() { printf 'uid %s, gid %s' "$(id -u)" "$(id -g)"; }

# Done while still root, so that a secret file may be root's alone; the second pass, as uid 70, finds values only.
settle_variables() {
	if [[ -n ${POSTGRES_PASSWORD_FILE-} ]]; then export ENTRYPOINT_FORGETS_PASSWORD=yes; fi
	settle POSTGRES_PASSWORD
	settle POSTGRES_USER postgres
	settle POSTGRES_DB "$POSTGRES_USER"
	settle POSTGRES_INITDB_ARGS
	: "${POSTGRES_HOST_AUTH_METHOD:=}"
}

has_database() { [[ -s $PGDATA/PG_VERSION ]]; }

# Whether the server is asked for something that needs no data folder, such as `postgres --version`.
asks_for_information() {
	local argument
	for argument in "$@"; do
		case $argument in
		-'?' | --help | --describe-config | -V | --version) return 0 ;;
		esac
	done
	return 1
}

# Makes the folders that the server needs, and gives them to uid 70 when this runs as root.
prepare_folders() {
	local user
	user=$(id -u)
	mkdir -p "$PGDATA"
	chmod 0700 "$PGDATA" 2>/dev/null || true
	mkdir -p "$SOCKET_FOLDER" 2>/dev/null || true
	chmod 3775 "$SOCKET_FOLDER" 2>/dev/null || true
	if [[ -n ${POSTGRES_INITDB_WALDIR-} ]]; then
		mkdir -p "$POSTGRES_INITDB_WALDIR"
		if [[ $user == 0 ]]; then
			find "$POSTGRES_INITDB_WALDIR" ! -uid "$SERVER_UID" -exec chown "$SERVER_UID:$SERVER_GID" '{}' +
		fi
		chmod 0700 "$POSTGRES_INITDB_WALDIR"
	fi
	if [[ $user == 0 ]]; then
		find "$PGDATA" ! -uid "$SERVER_UID" -exec chown "$SERVER_UID:$SERVER_GID" '{}' +
		find "$SOCKET_FOLDER" ! -uid "$SERVER_UID" -exec chown "$SERVER_UID:$SERVER_GID" '{}' +
	fi
}

# A data folder next to where PGDATA points is most likely the user's data under a wrong mount: an empty database in its
# place would look like a loss.
refuse_stray_database() {
	local folder
	for folder in /var/lib/postgresql /var/lib/postgresql/data /var/lib/postgresql/*/{data,main,docker}; do
		if [[ $folder != "$PGDATA" && -s $folder/PG_VERSION ]]; then
			fail "there is a PostgreSQL $(<"$folder/PG_VERSION") data folder in \`$folder\`, but PGDATA is \`$PGDATA\`, which has none" \
				"Mount the volume at \`$PGDATA\`, or set PGDATA=$folder"
		fi
	done
}

require_password() {
	if [[ -z $POSTGRES_PASSWORD && $POSTGRES_HOST_AUTH_METHOD != trust ]]; then
		fail 'no password for the superuser: the database is not initialized' \
			'Set POSTGRES_PASSWORD to a value that is not empty, for example: docker run -e POSTGRES_PASSWORD=…' \
			'or POSTGRES_PASSWORD_FILE to a file that holds it.' \
			'POSTGRES_HOST_AUTH_METHOD=trust allows every connection with no password; that is not safe.'
	fi
	if [[ $POSTGRES_HOST_AUTH_METHOD == trust ]]; then
		complain 'warning: POSTGRES_HOST_AUTH_METHOD is `trust`: whoever reaches the port is superuser with no password.'
		complain '         Do not use it where others can reach the port; set POSTGRES_PASSWORD instead.'
	fi
}

require_named_user() {
	id -un >/dev/null 2>&1 && return
	fail "$(describe_user) has no entry in /etc/passwd, which initdb needs" \
		"Run as root (the server steps down to uid $SERVER_UID by itself), with --user $SERVER_UID:$SERVER_GID," \
		'or mount an /etc/passwd that names the user.'
}

# Runs a command so that a signal is handled at once: the shell runs its traps while it waits, but not while a
# foreground command runs.
waiting_for() {
	"$@" &
	wait "$!"
}

run_initdb() {
	local arguments=(--pgdata="$PGDATA" --username="$POSTGRES_USER") words=()
	# The variable holds arguments as one would type them, quotes included.
	eval "words=($POSTGRES_INITDB_ARGS)"
	if [[ -n ${POSTGRES_INITDB_WALDIR-} ]]; then arguments+=(--waldir="$POSTGRES_INITDB_WALDIR"); fi
	if [[ -z $POSTGRES_PASSWORD ]]; then
		waiting_for initdb "${arguments[@]}" "${words[@]}"
	else
		# A pipe: the password is in no argument and in no file.
		waiting_for initdb "${arguments[@]}" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") "${words[@]}"
	fi
}

# Lets other machines log in. The method is the one that the server hashes passwords with, unless it is given.
write_host_rule() {
	local method=$POSTGRES_HOST_AUTH_METHOD
	if [[ -z $method ]]; then method=$(postgres -C password_encryption "$@"); fi
	{
		printf '\n'
		if [[ $method == trust ]]; then printf '# Every connection is allowed with no password, as POSTGRES_HOST_AUTH_METHOD asked for.\n'; fi
		printf 'host all all all %s\n' "$method"
	} >>"$PGDATA/pg_hba.conf"
}

# Starts the server for the first start alone: same arguments, but reachable over its unix socket only.
start_temporary_server() {
	local options
	options=$(printf '%q ' "$@" -c listen_addresses= -c "unix_socket_directories=$SOCKET_FOLDER" -p "${PGPORT:-5432}")
	temporary_server=yes
	NOTIFY_SOCKET='' waiting_for pg_ctl --pgdata="$PGDATA" --options="$options" --wait start
}

stop_temporary_server() {
	temporary_server=
	pg_ctl --pgdata="$PGDATA" --mode=fast --wait stop
}

# Runs psql on the temporary server as the superuser. Scripts that are sourced may call it; the name is the one that
# scripts written for the official image know.
docker_process_sql() {
	local arguments=(--set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --no-password --no-psqlrc)
	if [[ -n $POSTGRES_DB ]]; then arguments+=(--dbname "$POSTGRES_DB"); fi
	PGHOST=$SOCKET_FOLDER PGHOSTADDR='' psql "${arguments[@]}" "$@"
}

create_database() {
	[[ $POSTGRES_DB == postgres ]] && return
	local present
	present=$(POSTGRES_DB='' docker_process_sql --dbname postgres --set database="$POSTGRES_DB" --tuples-only --no-align \
		<<<"SELECT 1 FROM pg_database WHERE datname = :'database';")
	if [[ -z $present ]]; then
		POSTGRES_DB='' docker_process_sql --dbname postgres --set database="$POSTGRES_DB" <<<'CREATE DATABASE :"database";'
	fi
}

decompress_and_run() { "$1" -c "$2" | docker_process_sql; }

process_init_files() {
	local file
	for file in "$INIT_FOLDER"/*; do
		case $file in
		*.sh)
			if [[ -x $file ]]; then
				say "initdb.d: running $file"
				waiting_for "$file"
			else
				say "initdb.d: sourcing $file"
				# shellcheck disable=SC1090
				. "$file"
			fi
			;;
		*.sql) say "initdb.d: running $file" && waiting_for docker_process_sql -f "$file" ;;
		*.sql.gz) say "initdb.d: running $file" && waiting_for decompress_and_run gunzip "$file" ;;
		*.sql.xz) say "initdb.d: running $file" && waiting_for decompress_and_run unxz "$file" ;;
		*.sql.zst) say "initdb.d: running $file" && waiting_for decompress_and_run unzstd "$file" ;;
		*) say "initdb.d: ignoring $file" ;;
		esac
	done
}

# Runs when the first start ends by an error or a signal.
leave_first_start() {
	local status=$?
	trap - EXIT INT TERM QUIT
	if [[ -n $temporary_server ]]; then stop_temporary_server >&2 || true; fi
	complain "error: the first start did not finish (status $status): the data folder \`$PGDATA\` is half made"
	complain '       Mend what is named above, remove the volume, then start again.'
	exit "$status"
}

initialize() {
	refuse_stray_database
	require_password
	require_named_user
	# Before initdb, so that a folder that can't be read spoils nothing.
	if [[ -d $INIT_FOLDER ]]; then ls "$INIT_FOLDER" >/dev/null; fi

	temporary_server=
	trap leave_first_start EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	trap 'exit 131' QUIT
	run_initdb
	write_host_rule "$@"
	export PGPASSWORD=${PGPASSWORD-$POSTGRES_PASSWORD}
	PGUSER=${PGUSER:-$POSTGRES_USER} start_temporary_server "$@"
	create_database
	process_init_files
	stop_temporary_server
	unset PGPASSWORD
	trap - EXIT INT TERM QUIT
	say
	say 'PostgreSQL init process complete; ready for start up.'
	say
}

main() {
	case ${1-} in -*) set -- postgres "$@" ;; esac
	if [[ ${1-} != postgres ]] || asks_for_information "${@:2}"; then
		exec "$@"
	fi

	prepare_folders
	# Everything below, variables included, is for a first start only.
	if ! has_database; then settle_variables; fi
	if [[ $(id -u) == 0 ]]; then
		exec setpriv --reuid="$SERVER_UID" --regid="$SERVER_GID" --init-groups "${BASH_SOURCE[0]}" "$@"
	fi

	if has_database; then
		say
		say 'PostgreSQL Database directory appears to contain a database; Skipping initialization'
		say
	else
		initialize "${@:2}"
		if [[ -n ${ENTRYPOINT_FORGETS_PASSWORD-} ]]; then unset POSTGRES_PASSWORD; fi
	fi
	unset ENTRYPOINT_FORGETS_PASSWORD
	exec "$@"
}

main "$@"
