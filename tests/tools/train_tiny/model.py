"""A plain Qwen2 in PyTorch, named as Hugging Face names it, so that its state is a checkpoint's."""
import torch
import torch.nn.functional as F
from torch import nn

SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 256, "num_hidden_layers": 4,
    "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": None,
    "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True,
}


def rotate(x, cos, sin):
    """Rotary embedding of x [batch, heads, tokens, head_dim], halves paired."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, self.heads = shape["hidden_size"], shape["num_attention_heads"]
        self.kv_heads, self.dim = shape["num_key_value_heads"], width // self.heads
        self.q_proj = nn.Linear(width, self.heads * self.dim, bias=True)
        self.k_proj = nn.Linear(width, self.kv_heads * self.dim, bias=True)
        self.v_proj = nn.Linear(width, self.kv_heads * self.dim, bias=True)
        self.o_proj = nn.Linear(self.heads * self.dim, width, bias=False)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.dim).transpose(1, 2)
        copies = self.heads // self.kv_heads
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(copies, dim=1), v.repeat_interleave(copies, dim=1)
        out = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, inner = shape["hidden_size"], shape["intermediate_size"]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape["hidden_size"], eps=shape["rms_norm_eps"])
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape["hidden_size"], eps=shape["rms_norm_eps"])
        self.mlp = Mlp(shape)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape["vocab_size"], shape["hidden_size"])
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape["num_hidden_layers"]))
        self.norm = nn.RMSNorm(shape["hidden_size"], eps=shape["rms_norm_eps"])


class Qwen2(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self.lm_head = nn.Linear(shape["hidden_size"], shape["vocab_size"], bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids, targets):
        """Mean cross-entropy over the positions whose target is not -100."""
        dim = self.shape["hidden_size"] // self.shape["num_attention_heads"]
        inverse = self.shape["rope_theta"] ** (-torch.arange(0, dim, 2, device=ids.device).float() / dim)
        angles = torch.outer(torch.arange(ids.shape[1], device=ids.device).float(), inverse).repeat(1, 2)
        x = self.model.embed_tokens(ids)
        cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        if x.device.type == "cpu":
            cos, sin = cos.float(), sin.float()
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        logits = self.lm_head(self.model.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
