# What the job scripts share. They are submitted from the project's root, so this is sourced from there.

bin=${MANYVIEWS_BIN:-.venv/bin}
if [ -z "${MANYVIEWS_SRUN:-}" ] && [ ! -x "$bin/manyviews" ]; then # in a container it need not exist out here
    echo "$bin/manyviews is not there: submit from the project's root after make, or set MANYVIEWS_BIN" >&2
    exit 2
fi

# An array task has a number of its own, by which it is requeued alone; a requeued job keeps its number and its folder.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # each loader process is one thread; ranks share the node's cores

# step COMMAND...: on all tasks of the job. srun does not take over --cpus-per-task by itself.
step() {
    # shellcheck disable=SC2086  # MANYVIEWS_SRUN holds options, such as those of a container
    srun --export=ALL --kill-on-bad-exit=1 --label ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \
        ${MANYVIEWS_SRUN:-} "$@"
}

# train FILE ARGUMENTS...: manyviews fit in a folder that a requeued job goes on with: for experiments/clip/emoji.yaml
# runs/clip-emoji-JOB. What the arguments say comes last and so counts: --run, --trainer.strategy.
train() {
    local name=${1%.y*ml} code=0 parallel=()
    shift
    case $name in
    *experiments/*) name=${name##*experiments/} name=${name//\//-} ;;
    *) name=${name##*/} ;;
    esac
    parallel=(--trainer.num_nodes "$SLURM_JOB_NUM_NODES" --trainer.devices "${SLURM_NTASKS_PER_NODE:-1}")
    [ "${SLURM_GPUS_ON_NODE:-0}" = 0 ] || parallel+=(--trainer.accelerator gpu)
    [ "${SLURM_NTASKS:-1}" = 1 ] || parallel+=(--trainer.strategy ddp)
    mkdir -p runs
    export MANYVIEWS_REQUEUE=$PWD/runs/.requeue-$job
    rm -f "$MANYVIEWS_REQUEUE"
    echo "== job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NUM_NODES, tasks ${SLURM_NTASKS:-1}, $(date -Is)"
    step "$bin/manyviews" fit --run "runs/$name-$job" "${parallel[@]}" "$@" || code=$?
    # All ranks have saved and ended. The batch script asks for another start, not the ranks: in a container there is
    # no scontrol. The script is then killed, which is why it waits.
    if [ -e "$MANYVIEWS_REQUEUE" ]; then
        rm "$MANYVIEWS_REQUEUE"
        for _ in 1 2 3; do
            scontrol requeue "$job" && sleep 300
            sleep 10
        done
        code=1
    fi
    exit "$code"
}
