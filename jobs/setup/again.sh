# Read by the scripts beside it: `again COMMAND...` runs what fetches something, and tries three times.
again() {
  local pause
  for pause in 10 30; do
    "$@" && return
    echo "failed, once more in $pause s: $1" >&2
    sleep "$pause"
  done
  "$@"
}
