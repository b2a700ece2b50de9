# What the launchers share: one clear line for each mistake, and commands that are shown before they run.
# Sourced, not run. A launcher sets `dry_run` to true or false.
# shellcheck shell=bash

dry_run=${dry_run:-false}

# Ends with one line: what was found, what was expected, what to do.
fail() {
  echo "error: $*" >&2
  exit 2
}

# need_whole FLAG VALUE: a whole number of 1 or more.
need_whole() {
  [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1: found '$2', expected a whole number of 1 or more; correct it"
}

# need_value FLAG REMAINING: a flag that takes a value has one.
need_value() {
  (($2 > 1)) || fail "$1: found no value, expected $1 VALUE; give one"
}

# need_tool NAME WHERE: a program on this machine; not for a dry run.
need_tool() {
  [[ $dry_run == true ]] || command -v "$1" >/dev/null || fail "$1: not found on this machine, expected the program; $2"
}

# need_run_flags WORD...: the flags of cacenet_jax.main that every run has; leaves their values in `config` and `workdir`.
# The modes evaluate and index can do without --config.
config="" workdir="" mode=train
need_run_flags() {
  local word
  for word in "$@"; do
    case $word in
      --config | --workdir) fail "$word: found it without =, expected $word=VALUE as one word; put a = in place of the space" ;;
      --config=*) config=${word#*=} ;;
      --mode=*) mode=${word#*=} ;;
      --workdir=*) workdir=${word#*=} ;;
      --distributed* | --nodistributed | --coordinator* | --num_processes* | --process_id*)
        fail "$word: found a flag that this launcher sets itself, expected flags of the run; leave it out"
        ;;
    esac
  done
  [[ -n $config || $mode == evaluate || $mode == index ]] ||
    fail "--config: not given, expected --config=FILE, for example --config=configs/synthetic.py"
  [[ -n $workdir ]] || fail "--workdir: not given, expected --workdir=DIR, for example --workdir=workdirs/synthetic"
}

# need_file FOLDER: the file of --config, if it was given, seen from a folder.
need_file() {
  [[ -n $config ]] || return 0
  local file=${config%%:*}
  [[ $file == /* ]] || file=$1/$file
  [[ -f $file ]] || fail "--config: found no file $file, expected a Python file, for example --config=configs/synthetic.py"
}

# quoted WORD...: a command line that can be pasted into a shell.
quoted() {
  local out
  printf -v out '%q ' "$@"
  echo "${out% }"
}

# run WORD...: shows a command, and runs it unless this is a dry run.
run() {
  echo "+ $(quoted "$@")"
  [[ $dry_run == true ]] || "$@"
}
