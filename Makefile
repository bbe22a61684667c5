# The commands of the README. Each creates .venv first, with nothing but Python 3.11+.
PYTHON ?= python3
RUNS   ?= runs/specs
BIN    := .venv/bin

# The models are tiny: threads that wait for each other cost more than they bring.
export OMP_NUM_THREADS ?= 1

# The whole pipeline on the embedded world, one process a stage: `accelerate launch` is for more.
specs: .venv/ready
	@date +%s > .venv/started
	$(BIN)/python grpo.py --run_dir $(RUNS)/zero --eval_every 5 --overwrite
	$(BIN)/python build_prefs.py --zero $(RUNS)/zero/model --run_dir $(RUNS)/prefs --overwrite
	@echo "The SFT start runs beside this, on the other core; what it prints is in $(RUNS)/sft.log."
	@$(MAKE) --no-print-directory sft-to-final > $(RUNS)/sft.log 2>&1 & sft=$$!; \
	    $(MAKE) --no-print-directory hybrid-to-final && wait $$sft
	$(BIN)/python evaluate.py --run_dir $(RUNS)/report --overwrite --items 300 --gf_items 150 \
	    --models base=toy/base,zero=$(RUNS)/zero/model,warm-up=$(RUNS)/warmup/model,final=$(RUNS)/final/model,SFT=$(RUNS)/sft/model,final-SFT=$(RUNS)/final_sft/model \
	    --gf_runs DPO+SFT=$(RUNS)/warmup,SFT=$(RUNS)/sft
	$(BIN)/python -m report $(RUNS)
	@echo "make specs took $$(( $$(date +%s) - $$(cat .venv/started) )) s; the picture is $(RUNS)/report/report.png"

# Two cold starts, and stage 3 from each with the same settings.
STAGE3 := --steps 100 --lr 3e-4 --schedule cosine --seed 2 --eval_every 10

hybrid-to-final:
	$(BIN)/python dpo_sft.py --pairs $(RUNS)/prefs --run_dir $(RUNS)/warmup --overwrite
	$(BIN)/python grpo.py --model $(RUNS)/warmup/model $(STAGE3) --run_dir $(RUNS)/final --overwrite

sft-to-final:
	$(BIN)/python dpo_sft.py --pairs $(RUNS)/prefs --loss sft --run_dir $(RUNS)/sft --overwrite
	$(BIN)/python grpo.py --model $(RUNS)/sft/model $(STAGE3) --run_dir $(RUNS)/final_sft --overwrite

# The paper in miniature (experiments/). Each goes on where it stopped; JOBS stages run at a time.
JOBS ?= 2

paper: .venv/ready
	$(BIN)/python -m experiments --jobs $(JOBS) --minutes 85 --out runs/paper
	$(BIN)/python -m report runs/paper --experiments runs/paper/metrics.json

paper-quick: .venv/ready
	$(BIN)/python -m experiments --quick --jobs $(JOBS) --out runs/quick
	$(BIN)/python -m report runs/quick --experiments runs/quick/metrics.json

paper-more: .venv/ready
	$(BIN)/python -m experiments --more --jobs $(JOBS) --out runs/paper
	$(BIN)/python -m report runs/paper --experiments runs/paper/metrics.json

# A patched copy of a stage, `make variant NAME=gspo`; see variants/.
variant: .venv/ready
	$(BIN)/python variants/apply.py $(NAME)

# Style first (ruff.toml), then every test and doctest that is not marked `slow`, on two cores.
test: .venv/ready
	$(BIN)/ruff check --quiet --no-cache .
	$(BIN)/python -m pytest -n 2 -m "not slow"

# The tests marked `slow`: the pipeline and the experiments in small, the variants, the launcher, two
# ranks in one run, and the page in a browser (skipped by name where there is no Chromium).
test-slow: .venv/ready
	$(BIN)/python -m pytest -n 2 -m slow

# Odd responses against everything that reads one, new ones each time; the slow tests have fewer.
fuzz: .venv/ready
	FUZZ_RESPONSES=100000 $(BIN)/python -m pytest -n 2 -m slow tests/test_fuzz.py

# Kills runs at random moments, resumes them and compares: about an hour. TRIALS=8 is a taste.
TRIALS ?= 50
chaos: .venv/ready
	$(BIN)/python tests/chaos.py --trials $(TRIALS)

# Whatever needs a GPU, in parts of nine minutes; goes on where it stopped. runs/gpu/report.md.
gpu: .venv/ready
	$(BIN)/python benchmarks/gpu.py --out runs/gpu

# All of the 3B model on a CPU of 24 GB: one step of GRPO and of DPO, about ten minutes.
rehearsal: .venv/ready
	OMP_NUM_THREADS=2 $(BIN)/python benchmarks/rehearsal.py --out runs/rehearsal

# The virtual environment, made again whenever a requirement changes.
.venv/ready: requirements.txt requirements-test.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -r requirements.txt -r requirements-test.txt
	@touch .venv/ready

.PHONY: specs hybrid-to-final sft-to-final paper paper-quick paper-more variant test test-slow fuzz chaos gpu rehearsal
