/* Muon: the orthogonal factor against plain double products, the step by hand, threads, files,
 * memory. */
#define TASKMOE_IMPLEMENTATION
#define TMOE_THREADS
#include "../taskmoe.h"
#include "test.h"
#include "small.h"

/* -1 .. 1, the same every time */
static float noise(size_t i, uint64_t key)
{
    return 2.0f * tmoei_uniform(tmoei_random(key, TMOEI_STREAM_FEW_SHOT, i)) - 1.0f;
}

/* out (n, n) = x x^T of x (n, m) */
static void gram(const double *x, int n, int m, double *out)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            double sum = 0.0;
            for (int k = 0; k < m; k++) sum += x[i * m + k] * x[j * m + k];
            out[i * n + j] = sum;
        }
}

/* y (n, m) = a (n, n) x (n, m) */
static void times(const double *a, const double *x, int n, int m, double *y)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            double sum = 0.0;
            for (int k = 0; k < n; k++) sum += a[i * n + k] * x[k * m + j];
            y[i * m + j] = sum;
        }
}

/* (sum of the eighth powers of the singular values)^(1/8), by |x x^T x x^T|_F^(1/4) */
static double bound_of(const double *x, int rows, int cols)
{
    double *g = (double *)malloc(2 * (size_t)(rows * rows) * sizeof *g), *gg = g + rows * rows;
    double sum = 0.0;
    gram(x, rows, cols, g);
    times(g, g, rows, rows, gg);
    for (int i = 0; i < rows * rows; i++) sum += gg[i] * gg[i];
    free(g);
    return pow(sum, 0.125);
}

/* The polynomials in plain double products: x <- a x + b G x + c G^2 x + ... of G = x x^T. */
static void polar_by_hand(double *x, int rows, int cols)
{
    const int size = rows * cols;
    double *g = (double *)malloc((size_t)(rows * rows + 3 * size) * sizeof *g);
    double *power = g + rows * rows, *next = power + size, *sum = next + size;
    const double bound = bound_of(x, rows, cols);
    for (int i = 0; i < size; i++) x[i] /= bound > 0.0 ? bound : 1.0;
    for (int step = 0; step < 2; step++) {
        gram(x, rows, cols, g);
        memcpy(power, x, (size_t)size * sizeof *x);
        memset(sum, 0, (size_t)size * sizeof *sum);
        for (int k = 0; k < 5; k++) {
            for (int i = 0; i < size; i++) sum[i] += (double)tmoei_polar_steps[step][k] * power[i];
            times(g, power, rows, cols, next);
            memcpy(power, next, (size_t)size * sizeof *x);
        }
        memcpy(x, sum, (size_t)size * sizeof *x);
    }
    free(g);
}

/* y = polar(x) by the library */
static void polar_of(const tmoe_ctx *ctx, const float *x, int rows, int cols, float *y)
{
    const size_t size = (size_t)rows * (size_t)cols, room = tmoei_polar_floats(rows, cols);
    float *copy = (float *)malloc(size * sizeof(float));
    float *scratch = (float *)malloc(room * sizeof(float));
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    memcpy(copy, x, size * sizeof(float));
    memset(y, 0, size * sizeof(float));
    memset(scratch, 0xff, room * sizeof(float)); /* NaN */
    const tmoei_polar polar = { y, copy, rows, cols, 1.0f, 1.0f, scratch };
    tmoei_polar_add(ctx, 0, &polar);
    tmoei_float_mode_leave(mode);
    free(copy);
    free(scratch);
}

static const int shapes[][2] = { { 32, 32 }, { 96, 24 }, { 24, 96 }, { 1, 40 }, { 40, 1 }, { 1, 1 },
    { 17, 23 }, { 33, 31 }, { 67, 65 }, { 5, 100 } };

enum { SHAPES = sizeof shapes / sizeof *shapes, KINDS = 6 };

/* A matrix of one of some kinds, most of them ill-conditioned. */
static void fill(float *x, int rows, int cols, int kind)
{
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            const float r = noise((size_t)(i * cols + j), 1);
            const float one = noise((size_t)i, 2) * noise((size_t)j, 3);
            float value = r;
            if (kind == 1) value = one;                             /* rank 1 */
            if (kind == 2) value = one + 1e-4f * r;                 /* one value is large */
            if (kind == 3) value = j % 3 ? 0.0f : 1e-12f * r;       /* tiny, columns of zeros */
            if (kind == 4) value = 1e12f * r;                       /* huge */
            if (kind == 5) value = i + j == rows / 2 ? 1.0f : 0.0f; /* orthogonal, incomplete */
            x[i * cols + j] = value;
        }
}

static void test_polar_is_its_polynomial_for_any_condition(void)
{
    static const tmoe_isa isas[] = { TMOE_ISA_C, TMOE_ISA_AUTO, TMOE_ISA_AVX2 };
    for (int test = 0; test < SHAPES * KINDS * 3; test++) {
        const int rows = shapes[test % SHAPES][0], cols = shapes[test % SHAPES][1];
        const int size = rows * cols, kind = test / SHAPES % KINDS;
        tmoe_ctx_config config;
        memset(&config, 0, sizeof config);
        config.isa = isas[test / SHAPES / KINDS];
        tmoe_ctx *ctx = tmoe_ctx_create(&config);
        float *x = (float *)malloc(2 * (size_t)size * sizeof *x), *y = x + size;
        double *hand = (double *)malloc((size_t)size * sizeof *hand), squares = 0.0;
        fill(x, rows, cols, kind);
        for (int i = 0; i < size; i++) hand[i] = (double)x[i] * (kind == 3 ? 1e12 : 1.0);
        polar_of(ctx, x, rows, cols, y);
        polar_by_hand(hand, rows, cols);
        for (int i = 0; i < size; i++)
            squares += ((double)y[i] - hand[i]) * ((double)y[i] - hand[i]);
        CHECK_NEAR(sqrt(squares), 0.0, 2e-3); /* at least the operator norm */
        free(x);
        free(hand);
        tmoe_ctx_destroy(ctx);
    }
}

/* The singular values of x (rows, cols), by the eigenvalues of x x^T, and their bound. */
static double singular_values(const float *x, int rows, int cols, double *values)
{
    const int n = rows, size = rows * cols;
    double *d = (double *)malloc((size_t)(size + 2 * n * n) * sizeof *d);
    for (int i = 0; i < size; i++) d[i] = (double)x[i];
    gram(d, rows, cols, d + size);
    tmoei_eigen(d + size, d + size + n * n, (size_t)n);
    for (int i = 0; i < n; i++) values[i] = sqrt(fmax(d[size + i * n + i], 0.0));
    const double bound = bound_of(d, rows, cols);
    free(d);
    return bound;
}

static void test_singular_values_become_about_one(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    for (int test = 0; test < SHAPES; test++) {
        const int rows = shapes[test][0], cols = shapes[test][1], n = rows < cols ? rows : cols;
        float *x = (float *)malloc(2 * (size_t)(rows * cols) * sizeof *x), *y = x + rows * cols;
        double *before = (double *)malloc(2 * (size_t)rows * sizeof *before);
        double *after = before + rows;
        int small = rows - n, outside = 0;
        fill(x, rows, cols, 0);
        polar_of(ctx, x, rows, cols, y);
        const double bound = singular_values(x, rows, cols, before);
        (void)singular_values(y, rows, cols, after);
        if (rows <= cols)
            for (int i = 0; i < rows; i++) small += before[i] < TMOEI_POLAR_LEAST * bound;
        for (int i = 0; i < rows; i++) {
            CHECK(after[i] <= 1.3);
            outside += after[i] < 0.6;
        }
        CHECK(outside <= small && small - (rows - n) <= n / 8);
        free(x);
        free(before);
    }
    tmoe_ctx_destroy(ctx);
}

static void test_a_matrix_without_a_length_gives_a_zero_step(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    float x[20 * 30], y[20 * 30];
    for (int kind = 0; kind < 3; kind++) {
        memset(x, 0, sizeof x);
        if (kind == 1) x[7] = 1e-30f; /* its square is 0 in float */
        if (kind == 2) x[7] = 1e30f;  /* its square is infinite there */
        polar_of(ctx, x, 20, 30, y);
        for (int i = 0; i < 20 * 30; i++) CHECK(y[i] == 0.0f);
    }
    tmoe_ctx_destroy(ctx);
}

static tmoe_training muon_training(void)
{
    tmoe_training t = small_training();
    t.optimiser = TMOE_OPTIMISER_MUON;
    t.matrix_turns = 0; /* as most tests here want it */
    return t;
}

/* ---- the step by hand ---- */

typedef struct watch {
    float *g;
    size_t n;
    int zero; /* the gradients are replaced by zeros */
} watch;

static void watched(void *user, float *gradients, size_t count)
{
    watch *w = (watch *)user;
    if (w->zero) memset(gradients, 0, count * sizeof(float));
    w->g = (float *)realloc(w->g, count * sizeof(float));
    memcpy(w->g, gradients, (w->n = count) * sizeof(float));
}

/* One matrix in double: x (rows, cols) moves by its momentum m and gradient g. */
static void muon_by_hand(double *x, double *m, const float *g, double scale, int rows, int cols,
    double rate)
{
    const int size = rows * cols;
    double *u = (double *)malloc((size_t)size * sizeof *u);
    for (int i = 0; i < size; i++) {
        m[i] = 0.9 * m[i] + 0.1 * scale * (double)g[i];
        u[i] = 0.9 * m[i] + 0.1 * scale * (double)g[i];
    }
    polar_by_hand(u, rows, cols);
    for (int i = 0; i < size; i++)
        x[i] -= rate * sqrt(fmax(1.0, (double)rows / cols)) * u[i] + rate * 0.25 * x[i];
    free(u);
}

/* The matrices below each other in a tensor, by its name. */
static int matrices_of(const char *name)
{
    if (strncmp(name, "encoder.", 8) != 0 && strncmp(name, "decoder.", 8) != 0) return 0;
    if (strstr(name, "bias") || strstr(name, "norm") || strstr(name, "positions")
        || strstr(name, "task"))
        return 0;
    if (strstr(name, "qkv")) return 3;
    return strstr(name, "cross.kv") ? 2 : 1;
}

/* One of the trainer's steps: moves x and m, of all matrices, as the library should have moved
 * theta. Returns the worst difference, and takes theta over. */
static double step_by_hand(set *s, const watch *w, double *x, double *m, int step, double factor)
{
    const tmoe_training *t = &s->trainer->training;
    double norm = 0.0, worst = 0.0;
    for (size_t i = 0; i < w->n; i++) norm += (double)w->g[i] * (double)w->g[i];
    const double scale = norm > 1.0 ? 1.0 / sqrt(norm) : 1.0;
    const int a = t->alternate_steps, models = a == 0 || step / a % 2 == 0;
    const int moved = a ? step / (2 * a) * a + step % a : step;
    for (int p = 0; p < s->model->parameter_count; p++) {
        const tmoei_parameter *q = &s->model->parameters[p];
        const int blocks = matrices_of(q->name);
        const char *expert = strstr(q->name, "expert.");
        const int turn = t->matrix_turns && expert;
        for (int b = 0; b < blocks && models; b++) {
            const int rows = q->rows / blocks;
            const size_t at = q->offset + (size_t)(b * rows * q->cols);
            const int rests = turn && atoi(expert + 7) != moved % 3;
            const double rate = 2e-2 * factor * (turn ? 3.0 : 1.0) * !rests;
            muon_by_hand(x + at, m + at, w->g + (at - s->trainer->first), scale, rows, q->cols,
                rate);
        }
        for (size_t i = q->offset; blocks && i < q->offset + q->size; i++) {
            const double off = fabs(x[i] - (double)s->model->theta[i]);
            if (!(off <= worst)) worst = off;
            x[i] = (double)s->model->theta[i];
        }
    }
    return worst;
}

static void test_the_step_is_muons_by_hand(void)
{
    for (int way = 0; way < 4; way++) {
        tmoe_config c = small_config();
        tmoe_training t = muon_training();
        watch w = { NULL, 0, 0 };
        t.steps = 10;
        t.warmup = 0.4f;
        t.momentum = 0.9f;
        t.lr_matrices = 2e-2f;
        t.matrix_decay = 0.25f;
        t.alternate_steps = way % 2 ? 2 : 0;
        t.matrix_turns = way / 2;
        t.all_reduce = watched;
        t.all_reduce_user = &w;
        set s = make(1, &c, &t);
        const size_t n = s.model->size;
        double *x = (double *)calloc(2 * n, sizeof *x), *m = x + n;
        for (size_t i = 0; i < n; i++) x[i] = (double)s.model->theta[i];
        for (int step = 0; step < 10; step++) {
            CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
            const double factor = step < 3 ? (step + 1) / 4.0 : (10 - step) / 7.0;
            CHECK_NEAR(step_by_hand(&s, &w, x, m, step, factor), 0.0, 3e-5);
        }
        free(x);
        free(w.g);
        unmake(&s);
    }
}

/* Without a gradient a matrix keeps weights and momentum, whatever the decay; so do AdamW's weights
 * that do not decay. */
static void test_without_a_gradient_nothing_moves(void)
{
    tmoe_config c = small_config();
    tmoe_training t = muon_training();
    watch w = { NULL, 0, 0 };
    t.weight_decay = 0.0f;
    t.all_reduce = watched;
    t.all_reduce_user = &w;
    set s = make(1, &c, &t);
    const size_t n = s.model->size;
    float *before = (float *)malloc((n + s.trainer->span) * sizeof *before);
    for (int step = 0; step < 4; step++) {
        w.zero = step % 2;
        memcpy(before, s.model->theta, n * sizeof *before);
        memcpy(before + n, s.trainer->moment1, s.trainer->span * sizeof *before);
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (int p = 0; p < s.model->parameter_count; p++) {
            const tmoei_parameter *q = &s.model->parameters[p];
            const size_t bytes = q->size * sizeof *before, at = q->offset - s.trainer->first;
            if (!matrices_of(q->name)) continue;
            const int same = memcmp(before + q->offset, s.model->theta + q->offset, bytes) == 0
                && memcmp(before + n + at, s.trainer->moment1 + at, bytes) == 0;
            CHECK(same == w.zero);
        }
    }
    free(before);
    free(w.g);
    unmake(&s);
}

/* An expert that the step's task was not given to rests, also if it has a momentum. */
static void test_an_expert_that_is_not_chosen_rests(void)
{
    tmoe_config c = small_config();
    tmoe_training t = muon_training();
    int rested = 0, old = 0;
    c.mix = TMOE_MIX_OUTPUT;
    c.selection = TMOE_SELECT_RANDOM_TASK;
    c.random_n = 1;
    t.tasks_per_step = 1;
    t.steps = 40;
    set s = make(1, &c, &t);
    const size_t n = s.model->size;
    float *before = (float *)malloc(n * sizeof *before);
    for (int step = 0; step < 40; step++) {
        memcpy(before, s.model->theta, n * sizeof *before);
        CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        for (int i = 0; i < 2 * 3; i++) {
            const tmoei_layer *layer = &s.model->layers[i / 3];
            const size_t at =
                layer->block + (size_t)(i % 3) * layer->block_size + layer->offset[TMOEI_FC1];
            const int chosen = s.trainer->use[i] > 0.0f;
            const size_t bytes = 16 * 24 * sizeof *before;
            CHECK((memcmp(before + at, s.model->theta + at, bytes) != 0) == chosen);
            rested += !chosen;
            old += !chosen && s.trainer->moment1[at - s.trainer->first] != 0.0f;
        }
    }
    CHECK(rested == 40 * 2 * 2 && old > 40);
    free(before);
    unmake(&s);
}

/* ---- threads, files, memory ---- */

/* Theta, moments after `steps` steps on so many threads. */
static float *trained(int threads, const tmoe_training *t, size_t *count)
{
    tmoe_config c = small_config();
    set s = make(threads, &c, t);
    for (int i = 0; i < t->steps; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
    const size_t n = s.model->size, all = s.trainer->span, some = s.trainer->span2;
    float *x = (float *)malloc((n + all + some) * sizeof *x);
    memcpy(x, s.model->theta, n * sizeof *x);
    memcpy(x + n, s.trainer->moment1, all * sizeof *x);
    memcpy(x + n + all, s.trainer->moment2, some * sizeof *x);
    *count = n + all + some;
    unmake(&s);
    return x;
}

static void test_any_number_of_threads_gives_the_same_bits(void)
{
    static const int threads[] = { 2, 3, 7 };
    for (int turns = 0; turns < 2; turns++) {
        tmoe_training t = muon_training();
        t.matrix_turns = turns;
        size_t n, m;
        float *one = trained(1, &t, &n);
        for (int i = 0; i < 3; i++) {
            float *many = trained(threads[i], &t, &m);
            CHECK(n == m && memcmp(one, many, n * sizeof *one) == 0);
            free(many);
        }
        free(one);
    }
}

/* Stopped anywhere, also in the middle of turns, and resumed: as if it had never stopped. */
static void test_a_resumed_training_has_the_same_bits(void)
{
    const char *path = "build/test_muon.safetensors";
    tmoe_config c = small_config();
    for (int way = 0; way < 3; way++)
        for (int stop = 1; stop < 6; stop += 2) {
            tmoe_training t = muon_training();
            t.matrix_turns = way > 0;
            t.alternate_steps = way == 2 ? 2 : 0;
            size_t n;
            float *whole = trained(1, &t, &n);
            set a = make(1, &c, &t);
            for (int i = 0; i < stop; i++) CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
            CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);
            unmake(&a);

            set b = make(2, &c, &t);
            CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_OK);
            for (int i = stop; i < t.steps; i++)
                CHECK(tmoe_trainer_step(b.trainer, NULL) == TMOE_OK);
            const size_t size = b.model->size, span = b.trainer->span, span2 = b.trainer->span2;
            CHECK(n == size + span + span2);
            CHECK(memcmp(whole, b.model->theta, size * sizeof *whole) == 0);
            CHECK(memcmp(whole + size, b.trainer->moment1, span * sizeof *whole) == 0);
            CHECK(memcmp(whole + size + span, b.trainer->moment2, span2 * sizeof *whole) == 0);
            free(whole);
            unmake(&b);
        }
    (void)remove(path);
}

/* Overwrites Muon's settings in a checkpoint with spaces, as if an older version had written it. */
static int forget_settings(const char *path)
{
    static char bytes[1 << 20];
    const char *mark = ",\\\"optimiser\\\"";
    FILE *file = fopen(path, "rb+");
    const size_t n = file ? fread(bytes, 1, sizeof bytes, file) : 0;
    size_t at = 0;
    while (at + strlen(mark) < n && memcmp(bytes + at, mark, strlen(mark)) != 0) at++;
    const int found = at + strlen(mark) < n;
    for (; found && bytes[at] != '}'; at++) bytes[at] = ' ';
    if (!file) return 0;
    (void)fseek(file, 0, SEEK_SET);
    const int written = fwrite(bytes, 1, n, file) == n;
    return fclose(file) == 0 && found && written;
}

static void test_a_checkpoint_without_an_optimiser_is_adamws(void)
{
    const char *path = "build/test_muon_old.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    t.optimiser = TMOE_OPTIMISER_ADAMW;
    t.router_dropout = 0.0f; /* such a file says nothing of it, either */
    set a = make(1, &c, &t);
    for (int i = 0; i < 3; i++) CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);

    t.lr_matrices = 0.5f; /* what only Muon reads is not compared */
    set b = make(1, &c, &t);
    CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_OK);
    CHECK(forget_settings(path));
    CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_OK);
    CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_trainer_step(b.trainer, NULL) == TMOE_OK);
    CHECK(memcmp(a.model->theta, b.model->theta, a.model->size * sizeof(float)) == 0);
    unmake(&b);

    t.optimiser = TMOE_OPTIMISER_MUON;
    b = make(1, &c, &t);
    CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_ERR_CONFIG);
    CHECK_HAS(tmoe_error_message(b.ctx), "optimiser is 0 in the file, 1 here");
    unmake(&b);

    t.optimiser = TMOE_OPTIMISER_ADAMW;
    t.router_dropout = 0.5f;
    b = make(1, &c, &t);
    CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_ERR_CONFIG);
    CHECK_HAS(tmoe_error_message(b.ctx), "router_dropout is 0 in the file, 0.5 here");
    unmake(&b);
    unmake(&a);
    (void)remove(path);
}

static void test_resuming_with_other_settings_of_muon_is_refused(void)
{
    static const char *const named[] = { "lr_matrices is ", "momentum is ", "matrix_decay is ",
        "matrix_turns is 0 in the file, 1 here", "optimiser is 1 in the file, 0 here" };
    const char *path = "build/test_muon_other.safetensors";
    tmoe_config c = small_config();
    tmoe_training t = muon_training();
    set a = make(1, &c, &t);
    CHECK(tmoe_trainer_step(a.trainer, NULL) == TMOE_OK);
    CHECK(tmoe_trainer_save(a.trainer, path) == TMOE_OK);
    unmake(&a);
    for (int i = 0; i < 5; i++) {
        t = muon_training();
        if (i == 0) t.lr_matrices *= 2.0f;
        if (i == 1) t.momentum = 0.5f;
        if (i == 2) t.matrix_decay = 0.0f;
        if (i == 3) t.matrix_turns = 1;
        if (i == 4) t.optimiser = TMOE_OPTIMISER_ADAMW;
        set b = make(1, &c, &t);
        CHECK(tmoe_trainer_load(b.trainer, path) == TMOE_ERR_CONFIG);
        CHECK_HAS(tmoe_error_message(b.ctx), named[i]);
        CHECK(b.trainer->steps_done == 0);
        unmake(&b);
    }
    (void)remove(path);
}

/* What is not trained, or rests, keeps its weights and its moments. */
static void test_what_rests_keeps_its_weights_and_moments(void)
{
    for (int way = 0; way < 2; way++) {
        tmoe_config c = small_config();
        tmoe_training t = muon_training();
        t.train = way ? TMOE_TRAIN_ROUTER | TMOE_TRAIN_SHARED : TMOE_TRAIN_ALL;
        t.alternate_steps = way ? 0 : 2;
        set s = make(1, &c, &t);
        const size_t n = s.model->size, span = s.trainer->span;
        float *theta = (float *)malloc((n + span) * sizeof *theta), *m = theta + n;
        for (int step = 0; step < 8; step++) {
            memcpy(theta, s.model->theta, n * sizeof *theta);
            memcpy(m, s.trainer->moment1, span * sizeof *m);
            CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
            for (int p = 0; p < s.model->parameter_count; p++) {
                const tmoei_parameter *q = &s.model->parameters[p];
                if (q->rate != TMOEI_RATE_LAYERS || q->matrices == 0) continue;
                const size_t bytes = q->size * sizeof *theta, at = q->offset - s.trainer->first;
                const int rests = way || step / 2 % 2;
                const int same = memcmp(theta + q->offset, s.model->theta + q->offset, bytes) == 0
                    && memcmp(m + at, s.trainer->moment1 + at, bytes) == 0;
                CHECK(same == rests);
            }
        }
        free(theta);
        unmake(&s);
    }
}

/* The plan before anything is allocated is the trainer's, and what is taken; there is one moment
 * of each matrix. */
static void test_matrices_have_one_moment_and_the_plan_holds(void)
{
    for (int threads = 1; threads < 4; threads += 2) {
        tmoe_training_memory planned, real, adamw;
        tmoe_config c = small_config();
        tmoe_training t = muon_training();
        size_t matrices = 0;
        c.width = 64;
        c.encoder_ffn = c.decoder_ffn = 256;
        t.evaluate_every_steps = 2;
        t.validation_lines = 2;
        set s = make(threads, &c, &t);
        (void)tmoe_trainer_bytes(s.trainer, &real);
        for (int p = 0; p < s.model->parameter_count; p++)
            if (matrices_of(s.model->parameters[p].name)) matrices += s.model->parameters[p].size;
        CHECK(matrices == 3 * (12 + 16) * 64 * 64);
        CHECK(real.moments == 2 * real.gradients - matrices * sizeof(float));
        for (int i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);

        tmoe_trainer_destroy(s.trainer);
        const size_t before = tmoe_ctx_bytes(s.ctx, NULL);
        s.trainer = tmoe_trainer_create(s.model, s.suite, &t);
        const size_t taken = tmoe_ctx_bytes(s.ctx, NULL) - before;
        for (int i = 0; i < 8; i++) CHECK(tmoe_trainer_step(s.trainer, NULL) == TMOE_OK);
        CHECK(tmoe_ctx_bytes(s.ctx, NULL) - before == taken);
        tmoe_trainer_destroy(s.trainer);
        t.optimiser = TMOE_OPTIMISER_ADAMW;
        s.trainer = tmoe_trainer_create(s.model, s.suite, &t);
        const double more = (double)taken - (double)(tmoe_ctx_bytes(s.ctx, NULL) - before);
        t.optimiser = TMOE_OPTIMISER_MUON;

        CHECK(tmoe_training_bytes(s.ctx, &c, &t, 3, 40, 16, &planned) == TMOE_OK);
        t.optimiser = TMOE_OPTIMISER_ADAMW;
        CHECK(tmoe_training_bytes(s.ctx, &c, &t, 3, 40, 16, &adamw) == TMOE_OK);
        CHECK(planned.moments == real.moments && planned.gradients == real.gradients);
        CHECK(adamw.moments == 2 * adamw.gradients);
        CHECK(planned.step - adamw.step
            == (size_t)threads * tmoei_polar_floats(64, 64) * sizeof(float));
        const double planned_more =
            (double)(planned.moments + planned.step) - (double)(adamw.moments + adamw.step);
        CHECK_NEAR(more, planned_more, 1024); /* heads of blocks, rounding to cache lines */
        unmake(&s);
    }
}

/* ---- it learns ---- */

static float loss_after(const tmoe_training *t)
{
    tmoe_config c = small_config();
    tmoe_progress progress;
    c.width = 32;
    c.encoder_ffn = c.decoder_ffn = 64;
    set s = make(2, &c, t);
    for (int i = 0; i < t->steps; i++) CHECK(tmoe_trainer_step(s.trainer, &progress) == TMOE_OK);
    unmake(&s);
    return progress.loss;
}

/* An even guess among the 26 letters costs ln 26 = 3.3 nats. */
static void test_the_loss_falls(void)
{
    for (int turns = 0; turns < 2; turns++) {
        tmoe_training t = muon_training();
        t.steps = 200;
        t.matrix_turns = turns;
        t.lr_matrices = 2e-2f;
        t.matrix_decay = 0.0f;
        const float muon = loss_after(&t);
        t.lr_matrices = 0.0f; /* the matrices stay as they began */
        const float still = loss_after(&t);
        CHECK(muon < 0.2f && muon < 0.5f * still);
    }
}

static void test_few_shot_runs_with_muon(void)
{
    tmoe_config c = small_config();
    tmoe_training t = small_training();
    tmoe_few_shot f = tmoe_few_shot_default();
    tmoe_few_shot_result a, b;
    set s = make(2, &c, &t);
    tmoe_task task = *tmoe_suite_task(s.suite, 1);
    task.part = TMOE_PART_TEST;
    f.shots = 4;
    f.steps = 40;
    f.learning_rate_count = 2;
    f.batch_size_count = 1;
    CHECK(tmoe_few_shot_run(s.model, &task, &f, &a) == TMOE_OK);
    const tmoe_training adamw = tmoei_few_shot_training(&f, 1);
    f.optimiser = TMOE_OPTIMISER_MUON;
    const tmoe_training muon = tmoei_few_shot_training(&f, 1), defaults = tmoe_training_default();
    CHECK(adamw.optimiser == TMOE_OPTIMISER_ADAMW && muon.optimiser == TMOE_OPTIMISER_MUON);
    CHECK(muon.lr_model == f.learning_rates[1]);
    CHECK_NEAR(muon.lr_matrices / muon.lr_model, defaults.lr_matrices / defaults.lr_model, 1e-5);
    CHECK(tmoe_few_shot_run(s.model, &task, &f, &b) == TMOE_OK);
    CHECK(a.diverged == 0 && b.diverged == 0 && b.train_count == a.train_count);
    f.optimiser = (tmoe_optimiser)2;
    CHECK(tmoe_few_shot_run(s.model, &task, &f, &b) == TMOE_ERR_ARGUMENT);
    unmake(&s);
}

TEST_MAIN("test_muon", RUN(test_polar_is_its_polynomial_for_any_condition);
          RUN(test_singular_values_become_about_one);
          RUN(test_a_matrix_without_a_length_gives_a_zero_step);
          RUN(test_the_step_is_muons_by_hand); RUN(test_without_a_gradient_nothing_moves);
          RUN(test_an_expert_that_is_not_chosen_rests);
          RUN(test_any_number_of_threads_gives_the_same_bits);
          RUN(test_a_resumed_training_has_the_same_bits);
          RUN(test_a_checkpoint_without_an_optimiser_is_adamws);
          RUN(test_resuming_with_other_settings_of_muon_is_refused);
          RUN(test_what_rests_keeps_its_weights_and_moments);
          RUN(test_matrices_have_one_moment_and_the_plan_holds); RUN(test_the_loss_falls);
          RUN(test_few_shot_runs_with_muon);)
