#!/bin/sh
# What `make demo` runs, from text to a model that completes code: the commands of the README, one by one.
# Finished steps are skipped and a training that was stopped goes on, so it can be run again at any time.
set -eu

CODE=data/plain
DATA=data/code
RUN=runs/demo
MODEL=models/demo

step() {
  printf '\n$ lichen %s\n' "$*"
  lichen "$@"
}

complete() {
  printf "\n\$ printf '%s' | lichen sample %s - --temperature 0.4 --seed 1 --max-tokens 96\n" "$1" "$MODEL"
  printf '%b' "$1" | lichen sample "$MODEL" - --temperature 0.4 --seed 1 --max-tokens 96
}

trap 'printf "\nStopped. To go on: make demo\n"; exit 130' INT TERM

echo "The code of Python's standard library becomes training data, a small Kimi-K2-shaped model learns from"
echo "it for about four minutes at most, and then completes code. Ctrl-C stops; make demo goes on."

if [ ! -d "$DATA" ]; then
  printf '\n$ python recipes/plain_code.py %s\n' "$CODE"
  python recipes/plain_code.py "$CODE"
fi
step data prepare "$CODE" --vocab-size 4096 --out "$DATA"
step train recipes/demo.toml --out "$RUN"
step export "$RUN" "$MODEL"
complete 'def read_lines(path):\n'
complete 'class Stack:\n    def __init__(self'
complete 'import os\nimport sys\n\ndef main('

cat <<END

What there is now:
  $DATA          the training data and its tokenizer
  $RUN            the run: recipe, metrics, checkpoints
  $RUN/report.html    its report, with plots; open it in a browser
  $MODEL          the model, for transformers, vLLM, SGLang and llama.cpp

Your own completion:   .venv/bin/lichen sample $MODEL "def "
Your own training:     copy recipes/demo.toml, change it, and lichen train it
END
