# The two commands of the README. Both create .venv from requirements.txt first, with nothing but Python 3.11+.
PYTHON ?= python3
RUNS   ?= runs/specs
BIN    := .venv/bin

specs: .venv/ready  ## the whole pipeline on the embedded world, in one process: `accelerate launch` is for more
	@date +%s > .venv/started
	$(BIN)/python grpo.py --run_dir $(RUNS)/zero --overwrite
	$(BIN)/python build_prefs.py --zero $(RUNS)/zero/model --run_dir $(RUNS)/prefs --overwrite
	$(BIN)/python dpo_sft.py --pairs $(RUNS)/prefs --run_dir $(RUNS)/warmup --overwrite
	$(BIN)/python dpo_sft.py --pairs $(RUNS)/prefs --loss sft --run_dir $(RUNS)/sft --overwrite
	$(BIN)/python grpo.py --model $(RUNS)/warmup/model --steps 100 --lr 4e-4 --schedule cosine --seed 2 \
	    --run_dir $(RUNS)/final --overwrite
	$(BIN)/python evaluate.py --run_dir $(RUNS)/report --overwrite \
	    --models base=toy/base,zero=$(RUNS)/zero/model,warm-up=$(RUNS)/warmup/model,final=$(RUNS)/final/model \
	    --gf_runs DPO+SFT=$(RUNS)/warmup,SFT=$(RUNS)/sft
	@echo "make specs took $$(( $$(date +%s) - $$(cat .venv/started) )) s; the picture is $(RUNS)/report/report.png"

test: .venv/ready  ## every test, and the pipeline in small
	$(BIN)/python -m pytest

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch .venv/ready

.PHONY: specs test
