# The paper's learned-table baseline (Bochkov, section 4 and Tables 2 and 3), on two H100 80 GB:
#   torchrun --nproc_per_node=2 train.py config/learned32.py
# Prepare the data first: python prepare_data.py config/data_fineweb_cosmopedia.py
dataset = "fineweb_cosmopedia"
vocab_size = 65_536  # K = 16 bits

# model
input_layer = "learned"
block_size = 1024
n_layer = 32
n_head = 32  # heads 32 wide: two copies of the 16-bit code in each
n_embd = 1024

# 16 sequences x 1024 tokens x 200 micro-steps = 3,276,800 tokens a step
batch_size = 16
gradient_accumulation_steps = 200
max_steps = 5216  # x 3,276,800 = 17.092 B tokens

# optimizer; the paper gives neither the betas nor min_lr: 0.9, 0.95 and a tenth are ours
learning_rate = 4e-4
min_lr = 4e-5
warmup_steps = 150
weight_decay = 0.1
grad_clip = 1.0
dtype = "float32"  # as the paper; bfloat16 is faster

eval_interval = 50  # 164 M tokens
eval_tokens = 4_194_304
log_interval = 1
