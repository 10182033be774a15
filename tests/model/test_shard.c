#include "runtime/base/alloc.h"
#include "runtime/model/shard.h"
#include "tests/harness/test.h"

static struct model_config make_config(uint32_t heads, uint32_t kv_heads, uint32_t ffn, uint32_t vocab) {
    struct model_config config = {.arch = MODEL_LLAMA, .hidden_size = 24, .n_layers = 2, .n_heads = heads};
    config.n_kv_heads = kv_heads;
    config.head_dim = 4;
    config.intermediate_size = ffn;
    config.vocab_size = vocab;
    config.qkv_bias = true;
    config.o_bias = true;
    config.mlp_bias = true;
    return config;
}

static void make_shard(const struct model_config *config, uint32_t rank, uint32_t world, bool balanced,
                       struct shard_model *shard) {
    EXPECT_OK(shard_model_make(config, rank, world, shard));
    if (balanced) {
        shard_balance_ffn(config, shard);
    }
}

/* Puts the slices of all ranks back into the whole tensor. Every cell is taken once, or, for KV heads that are held in
 * copies, at least once; the bias of a row-parallel matrix exactly once. */
static void check_tensor(const struct model_config *config, uint32_t world, bool balanced, uint32_t index) {
    char name[SHARD_NAME_MAX];
    struct shard_slice slice;
    struct shard_model shard;
    uint8_t *taken = NULL;
    for (uint32_t rank = 0; rank < world; rank++) {
        make_shard(config, rank, world, balanced, &shard);
        shard_tensor(config, &shard, index, name, &slice);
        if (taken == NULL) {
            taken = xcalloc(slice.rows, slice.cols);
        }
        EXPECT(slice.row_first + slice.n_rows <= slice.rows && slice.col_first + slice.n_cols <= slice.cols);
        for (uint32_t r = 0; r < slice.n_rows; r++) {
            for (uint32_t c = 0; c < slice.n_cols; c++) {
                taken[(slice.row_first + r) * slice.cols + slice.col_first + c]++;
            }
        }
        struct shard_slice found;
        EXPECT_OK(shard_find(config, &shard, name, &found));
        EXPECT(memcmp(&found, &slice, sizeof slice) == 0);
    }
    bool norm = slice.place == SHARD_FINAL_NORM || slice.place == SHARD_ATTN_NORM || slice.place == SHARD_FFN_NORM;
    bool kv = strstr(name, "k_proj") != NULL || strstr(name, "v_proj") != NULL;
    for (uint32_t i = 0; i < slice.rows * slice.cols; i++) {
        if (norm) {
            EXPECT_EQ(taken[i], world);
        } else if (kv && world > config->n_kv_heads) {
            EXPECT(taken[i] >= world / config->n_kv_heads && taken[i] <= world / config->n_kv_heads + 1);
        } else {
            EXPECT_EQ(taken[i], 1);
        }
    }
    free(taken);
}

/* The slices of one rank fill each place without a gap or an overlap. */
static void check_places(const struct model_config *config, const struct shard_model *shard) {
    uint32_t filled[SHARD_PLACES] = {0};
    char name[SHARD_NAME_MAX];
    for (uint32_t i = 0; i < shard_tensor_count(config); i++) {
        struct shard_slice slice;
        shard_tensor(config, shard, i, name, &slice);
        if (slice.layer == 0) {
            EXPECT_EQ(slice.dest_row, filled[slice.place]);
            filled[slice.place] += slice.n_rows;
        }
    }
    for (int place = 0; place < SHARD_PLACES; place++) {
        uint32_t rows;
        uint32_t cols;
        shard_place_shape(config, shard, (enum shard_place)place, &rows, &cols);
        EXPECT_EQ(rows, filled[place]);
    }
}

static void check_map(const struct model_config *config, const struct shard_model *shard) {
    uint32_t map[64];
    shard_q_to_kv(config, shard, map);
    EXPECT(shard->n_q >= 1 && shard->n_kv >= 1 && shard->n_ffn >= 1 && shard->n_vocab >= 1);
    for (uint32_t h = 0; h < shard->n_q; h++) {
        EXPECT(map[h] < shard->n_kv);
        EXPECT_EQ(shard->kv_first + map[h], (shard->q_first + h) / (config->n_heads / config->n_kv_heads));
    }
}

TEST(slices_partition_every_tensor) {
    static const uint32_t heads[][2] = {{1, 1},  {2, 1},  {4, 4},  {8, 4},   {9, 3},  {12, 2}, {14, 2},
                                        {28, 4}, {32, 8}, {40, 8}, {24, 24}, {15, 5}, {16, 1}, {48, 16}};
    static const uint32_t sizes[][2] = {{172, 512}, {96, 49152 / 64}, {17, 33}, {64, 160}, {1536 / 16, 321}};
    for (size_t h = 0; h < sizeof heads / sizeof heads[0]; h++) {
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            struct model_config config = make_config(heads[h][0], heads[h][1], sizes[s][0], sizes[s][1]);
            for (uint32_t world = 1; world <= SHARD_MAX_WORLD; world++) {
                struct shard_model shard;
                if (world > config.n_heads) {
                    EXPECT_FAILS(shard_model_make(&config, 0, world, &shard), STATUS_UNSUPPORTED, "query heads");
                    continue;
                }
                for (uint32_t i = 0; i < shard_tensor_count(&config); i++) {
                    check_tensor(&config, world, false, i);
                    check_tensor(&config, world, true, i);
                }
                for (uint32_t rank = 0; rank < 2 * world; rank++) {
                    make_shard(&config, rank / 2, world, rank % 2 != 0, &shard);
                    check_places(&config, &shard);
                    check_map(&config, &shard);
                }
            }
        }
    }
}

static void expect_split(const struct model_config *config, uint32_t world, const uint32_t *n_kv, const uint32_t *n_q) {
    for (uint32_t rank = 0; rank < world; rank++) {
        struct shard_model shard;
        EXPECT_OK(shard_model_make(config, rank, world, &shard));
        EXPECT_EQ(shard.n_kv, n_kv[rank]);
        EXPECT_EQ(shard.n_q, n_q[rank]);
    }
}

TEST(groups_are_dealt_as_the_design_says) {
    struct model_config config = make_config(32, 8, 256, 512);
    expect_split(&config, 3, (uint32_t[]){3, 3, 2}, (uint32_t[]){12, 12, 8});
    config = make_config(9, 3, 1536, 49152);
    expect_split(&config, 2, (uint32_t[]){2, 1}, (uint32_t[]){6, 3});
    expect_split(&config, 3, (uint32_t[]){1, 1, 1}, (uint32_t[]){3, 3, 3});
    expect_split(&config, 4, (uint32_t[]){1, 1, 1, 1}, (uint32_t[]){2, 1, 3, 3});
    expect_split(&config, 5, (uint32_t[]){1, 1, 1, 1, 1}, (uint32_t[]){2, 1, 2, 1, 3});
}

TEST(columns_go_in_granules_where_they_can) {
    struct model_config config = make_config(8, 4, 172, 512);
    struct shard_model shard;
    EXPECT_OK(shard_model_make(&config, 3, 4, &shard));
    EXPECT_EQ(shard.n_ffn, 43); /* 172 is no multiple of 16: one by one */
    EXPECT_EQ(shard.ffn_first, 129);
    config = make_config(28, 4, 18944, 152064);
    EXPECT_OK(shard_model_make(&config, 1, 3, &shard));
    EXPECT_EQ(shard.ffn_first % 16, 0);
    EXPECT_EQ(shard.n_ffn, 6320); /* 1,184 granules of 16: 395, 395, 394 */
    EXPECT_EQ(shard.n_vocab, 50688);
}

/* Products of a layer for one token, over the hidden size: what a rank has of qkv and o, keys and values of 512
 * positions, and gate, up and down. */
static double layer_size(const struct model_config *config, const struct shard_model *shard) {
    return (double)(2 * shard->n_q + 2 * shard->n_kv) * config->head_dim +
           2.0 * 512 * shard->n_q * config->head_dim / config->hidden_size + 3.0 * shard->n_ffn;
}

TEST(columns_make_up_for_heads) {
    struct model_config config = make_config(9, 3, 1536, 49152); /* SmolLM2-135M */
    struct shard_model shard;
    config.head_dim = 64;
    config.hidden_size = 576;
    make_shard(&config, 0, 2, true, &shard);
    EXPECT(shard.ffn_first == 0 && shard.n_ffn == 624); /* 625.8, in granules of 16 */
    make_shard(&config, 1, 2, true, &shard);
    EXPECT(shard.ffn_first == 624 && shard.n_ffn == 912);
    config = make_config(32, 8, 14336, 128256); /* Llama 8B */
    config.head_dim = 128;
    config.hidden_size = 4096;
    for (uint32_t world = 1; world <= 8; world++) {
        struct shard_model even;
        double sum = (64 + 16) * 128 + 2.0 * 512 * 32 * 128 / config.hidden_size + 3.0 * 14336;
        for (uint32_t rank = 0; rank < world; rank++) {
            make_shard(&config, rank, world, false, &even);
            make_shard(&config, rank, world, true, &shard);
            EXPECT(layer_size(&config, &shard) > sum / world - 3 * 16 &&
                   layer_size(&config, &shard) < sum / world + 3 * 16);
            EXPECT(8 % world != 0 || shard.n_ffn == even.n_ffn);
        }
    }
}

/* Heads that weigh more than all columns are left alone. */
TEST(no_rank_is_left_without_columns) {
    struct model_config config = make_config(3, 3, 64, 512);
    struct shard_model shard;
    config.head_dim = 64;
    config.hidden_size = 576;
    make_shard(&config, 0, 2, true, &shard);
    EXPECT_EQ(shard.n_ffn, 32);
}

TEST(impossible_worlds_are_refused) {
    struct model_config config = make_config(8, 4, 172, 512);
    struct shard_model shard;
    EXPECT_FAILS(shard_model_make(&config, 0, 9, &shard), STATUS_UNSUPPORTED, "at most 8");
    EXPECT_FAILS(shard_model_make(&config, 0, 17, &shard), STATUS_INVALID, "1 to 16");
    EXPECT_FAILS(shard_model_make(&config, 2, 2, &shard), STATUS_INVALID, "rank 2 of 2");
    EXPECT_FAILS(shard_model_make(&config, 0, 0, &shard), STATUS_INVALID, "1 to 16");
    config.intermediate_size = 3;
    EXPECT_FAILS(shard_model_make(&config, 0, 4, &shard), STATUS_UNSUPPORTED, "feed-forward columns");
}

TEST(names_are_matched_exactly) {
    struct model_config config = make_config(8, 4, 172, 512);
    struct shard_model shard;
    struct shard_slice slice;
    EXPECT_OK(shard_model_make(&config, 0, 2, &shard));
    static const char *const unknown[] = {"model.layers.2.mlp.up_proj.weight",
                                          "model.layers.01.mlp.up_proj.weight",
                                          "model.layers..mlp.up_proj.weight",
                                          "model.layers.1.mlp.up_proj.weights",
                                          "model.layers.1",
                                          "",
                                          "model.layers.0.self_attn.rotary_emb.inv_freq"};
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        EXPECT_FAILS(shard_find(&config, &shard, unknown[i], &slice), STATUS_NOT_FOUND, "not part of this model");
    }
    EXPECT_OK(shard_find(&config, &shard, "lm_head.weight", &slice));
    config.tie_word_embeddings = true;
    EXPECT_FAILS(shard_find(&config, &shard, "lm_head.weight", &slice), STATUS_NOT_FOUND, "lm_head");
    config.o_bias = false;
    EXPECT_FAILS(shard_find(&config, &shard, "model.layers.0.self_attn.o_proj.bias", &slice), STATUS_NOT_FOUND, "o_pr");
}
