# What the job of FOLDER/runs/PHD-CSWA-3-16-32-seed1 runs on every node; written by submit.sh.
export DATA_PREFIX=FOLDER/data
export TOKENIZER_MODEL=FOLDER/tokenizer.model
export SEED=1
export RUNS=FOLDER/runs
export NNODES=1
export PYTHON=${PYTHON:-VENV/bin/python}
exec FOLDER/runs/PHD-CSWA-3-16-32-seed1/code/examples/pretrain.sh 300k PHD-CSWA-3-16-32 
