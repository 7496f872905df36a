#!/bin/sh
# What `make demo` runs, from text to a model that completes code: the commands of the README, one by one.
# Finished steps are skipped and a training that was stopped goes on, so it can be run again at any time.
set -eu

DATA=data/stdlib
RUN=runs/demo
MODEL=models/demo

step() {
  printf '\n$ lichen %s\n' "$*"
  lichen "$@"
}

complete() {
  one_line=$(printf %s "$1" | awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }')
  printf "\n\$ lichen sample %s \$'%s' --temperature 0.6 --seed 1 --max-tokens 96\n" "$MODEL" "$one_line"
  lichen sample "$MODEL" "$1" --temperature 0.6 --seed 1 --max-tokens 96
}

trap 'printf "\nStopped. To go on: make demo\n"; exit 130' INT TERM

echo "Python's standard library becomes training data, a small Kimi-K2-shaped model learns from it for"
echo "a few minutes, and then completes code. Ctrl-C stops; make demo goes on."

step data prepare --out "$DATA"
step train recipes/demo.toml --out "$RUN"
step export "$RUN" "$MODEL"
complete 'def read_lines(path):'
complete 'class Stack:
    def __init__(self'
complete 'import os
import sys

def main('

cat <<END

What there is now:
  $DATA          the training data and its tokenizer
  $RUN            the run: recipe, metrics, checkpoints
  $RUN/report.html    its report, with plots; open it in a browser
  $MODEL          the model, for transformers, vLLM, SGLang and llama.cpp

Your own completion:   .venv/bin/lichen sample $MODEL "def "
Your own training:     copy recipes/demo.toml, change it, and lichen train it
END
