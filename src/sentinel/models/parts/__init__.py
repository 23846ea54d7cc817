"""What a layer is made of. ::

    x ──┬─────────────────────────────(+)──┬──────────────────────────(+)──► the next layer
        │                              ▲   │                           ▲
        └─► attn_norm ─► qkv_proj      │   └─► mlp_norm ─► up_proj     │
                            │          │                  gate_proj    │
                     q_norm, k_norm    │                      │        │
                            │          │                  activation   │
                         rotary        │                      │        │
                            │          │                  down_proj    │
                     softmax(QK')V     │                      │        │
                            │          │               mlp_post_norm   │
                     gate of each head │                      └────────┘
                            │          │
                         out_proj      │
                            │          │
                     attn_post_norm ───┘

`BlockSpec` says which of the four norms there are, and `AttentionSpec` and `MlpSpec` which of the rest. With parallel
halves the MLP reads x as it enters the layer, too.
"""
