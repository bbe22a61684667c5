# The commands of the README. Each creates .venv first, with nothing but Python 3.11+.
PYTHON ?= python3
RUNS   ?= runs/specs
BIN    := .venv/bin

# The whole pipeline on the embedded world, in one process: `accelerate launch` is for more.
specs: .venv/ready
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

# A patched copy of a stage, `make variant NAME=gspo`; see variants/.
variant: .venv/ready
	$(BIN)/python variants/apply.py $(NAME)

# Style first (ruff.toml), then every test and doctest that is not marked `slow`, on two cores.
test: .venv/ready
	$(BIN)/ruff check --quiet --no-cache .
	$(BIN)/python -m pytest -n 2 -m "not slow"

# The tests marked `slow`: the pipeline in small, the variants, the launcher, two ranks in one run.
test-slow: .venv/ready
	$(BIN)/python -m pytest -n 2 -m slow

# The virtual environment, made again whenever a requirement changes.
.venv/ready: requirements.txt requirements-test.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -r requirements.txt -r requirements-test.txt
	@touch .venv/ready

.PHONY: specs variant test test-slow
