#!/usr/bin/env bash
# Trains on a Cloud TPU VM, one run or a sweep, and brings the results home.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --name=VM --zone=ZONE --config=FILE (--workdir=DIR | --out=DIR)
           [options] [--config.FIELD=VALUE ...]

Makes the TPU VM if there is none of that name, copies this project to it (tracked files, as they
are now), installs jax[tpu], runs main.py there, or launch/local.py for the config's sweep, and
fetches DIR. The same command goes on where a run was interrupted; to a new VM, a DIR that is here
already is copied first. Types with one worker only, such as v5litepod-8, or v6e-8: workers share
no disk for their checkpoints.

  --workdir=DIR     of one run, as main.py leaves it
  --out=DIR         of the config's sweep, with its sweep.csv, as launch/local.py leaves it
  --name=VM         of the TPU VM
  --zone=ZONE       e.g. us-central1-a
  --type=TYPE       the accelerator, default v5litepod-1
  --version=IMAGE   of its software, default v2-alpha-tpuv5-lite
  --spot            cheaper, and may be preempted
  --delete          deletes the VM once DIR is fetched
  --dry_run         prints the commands and runs none
  --help            prints this

gcloud must be installed and logged in (gcloud auth login; gcloud config set project PROJECT).
TEXT
}

fail() {
  echo "$*" >&2
  exit 2
}

name="" zone="" workdir="" out="" config="" type=v5litepod-1 version=v2-alpha-tpuv5-lite
spot=() delete=false dry_run=false flags=()
for argument in "$@"; do
  value=${argument#*=}
  case $argument in
    --name=*) name=$value ;;
    --zone=*) zone=$value ;;
    --type=*) type=$value ;;
    --version=*) version=$value ;;
    --workdir=*) workdir=${value%/} ;;
    --out=*) out=${value%/} ;;
    --config=*) config=$value flags+=("$argument") ;;
    --spot) spot=(--spot) ;;
    --delete) delete=true ;;
    --dry_run) dry_run=true ;;
    --help | -h) usage && exit ;;
    --config.*=*) flags+=("$argument") ;;
    *) fail "$argument is not a flag of launch/tpu_vm.sh; see --help." ;;
  esac
done
[[ $name ]] || fail "Say which TPU VM: --name=VM; see --help."
[[ $zone ]] || fail "Say where: --zone=us-central1-a, for example; see --help."
[[ $config ]] || fail "Say what to train: --config=configs/sigma2.py, for example."
[[ $workdir || $out ]] || fail "Say where results go: --workdir=runs/tpu, or --out for a sweep."
[[ -z $workdir || -z $out ]] || fail "Say --workdir for one run or --out for a sweep, not both."
results=$workdir$out program=(main.py "${flags[@]}" "--workdir=$workdir")
[[ -z $out ]] || program=(-m launch.local "${flags[@]}" "--out=$out")
[[ $results != /* ]] || fail "$results: say a path inside the project, e.g. runs/tpu."

cd "$(dirname "$0")/.."
$dry_run || command -v gcloud >/dev/null || fail "gcloud is not installed: cloud.google.com/sdk."

run() {
  if $dry_run; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}
vm() { run gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$zone"; }
on_all_workers() { vm ssh "$name" --worker=all --command="$1"; }

new=false
if $dry_run || ! gcloud compute tpus tpu-vm describe "$name" --zone="$zone" >/dev/null 2>&1; then
  new=true
  vm create "$name" --accelerator-type="$type" --version="$version" "${spot[@]}"
fi
archive=$(mktemp -t heatmap-XXXXXX.tar.gz)
trap 'rm -f "$archive"' EXIT
$dry_run || git ls-files -z | tar --null --files-from=- -czf "$archive"
vm scp "$archive" "$name:heatmap.tar.gz" --worker=all
# The image's own Python is older than ours; uv brings one.
on_all_workers "mkdir -p heatmap && tar -xzf heatmap.tar.gz -C heatmap && cd heatmap \
&& python3 -m pip install -q --user uv && { [ -d .venv ] || python3 -m uv venv -q -p 3.12 .venv; } \
&& python3 -m uv pip install -q -p .venv -e . 'jax[tpu]'"
if $new && [[ -d $results ]]; then
  on_all_workers "mkdir -p $(printf %q "heatmap/$(dirname "$results")")"
  vm scp --recurse "$results" "$name:heatmap/$results" --worker=all
fi

status=0
on_all_workers "cd heatmap && .venv/bin/python$(printf ' %q' "${program[@]}")" ||
  status=$?
run mkdir -p "$(dirname "$results")"
run rm -rf "$results.fetched"
vm scp --recurse "$name:heatmap/$results" "$results.fetched" --worker=0
run rm -rf "$results"
run mv "$results.fetched" "$results"
! $delete || vm delete "$name" --quiet
exit "$status"
