/* taskmoe.h 0.4.0 - task-level mixture of experts in C: one header, nothing but libc and libm
 *   #define TASKMOE_IMPLEMENTATION     in ONE .c file, before
 *   #include "taskmoe.h"               cc -O2 program.c -lm     (and -lpthread with TMOE_THREADS)
 *
 * Whole transformer layers are experts. A router looks at a representation of the TASK - not of the
 * token and not of the example - and chooses, layer by layer, how the experts are mixed. You train
 * one model on many tasks, and ask it about tasks that it has seen and about tasks that it knows by
 * their instruction only.
 *
 * The library does not use a GPU, mixed precision or quantisation. It does not run on several
 * machines by itself: you plug in an all-reduce. It never exits, aborts, prints or reads the
 * environment. It has no language model in it: a model is trained from scratch or from a BART.
 *
 * CONTENTS (search for the tag; each room calls only rooms above it)
 *   quick start, the algorithm, concepts, build options, then the API: what you call, up to "the
 *   API ends here". Read these to use the library.
 *   BOOK I, THE ENGINE    to see how it is fast, or to build a model of your own on the tape
 *     >>platform >>errors >>memory >>bytes >>random       the foundation
 *     >>machine >>parallel >>kernels >>products >>sweeps  processor, threads, matrix products
 *     >>polar                                             a matrix made orthogonal
 *     >>context >>tape >>ops                              values forward, gradients backward
 *   BOOK II, THE METHOD   to know task-level mixture of experts: read this one from end to end
 *     >>vectors >>model >>mix >>layers >>router           from a task to its route and its model
 *     >>batches >>training >>inference                    learning and answering
 *   BOOK III, THE WORLD   to see what is read and written, and how answers are scored
 *     >>settings                                          fields by their names
 *     >>json >>safetensors >>tokenizer >>suite >>onecall  files, texts, folders of tasks
 *     >>metrics >>routes >>fewshot                        scores, reading of routes, new tasks
 *     >>files >>bart                                      checkpoints, real models
 *   licence               last lines
 *
 * QUICK START (examples/quickstart.c, word for word; prints "violin -> VIOLIN")
 *   #define TASKMOE_IMPLEMENTATION
 *   #include "../taskmoe.h"
 *   #include <stdio.h>
 *   #include <string.h>
 *
 *   int main(int argc, char **argv)
 *   {
 *       tmoe_ctx *ctx = tmoe_ctx_create(NULL);
 *       tmoe_training training = tmoe_training_default();
 *       tmoe_config config = tmoe_config_default();
 *       const char *path = argc > 1 ? argv[1] : "quickstart.safetensors";
 *       const char *task = "word_upper_case";
 *       char answer[64] = "";
 *       tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", "quickstart");
 *       tmoe_model *model;
 *
 *       training.steps = 800;
 *       config.width = 64; // a small model for a small job
 *       config.encoder_ffn = config.decoder_ffn = 256;
 *       model = suite ? tmoe_train(ctx, suite, &config, &training) : NULL;
 *       if (!model || tmoe_answer(model, task, "violin", answer, sizeof answer) != TMOE_OK
 *           || tmoe_model_save(model, path) != TMOE_OK)
 *           fprintf(stderr, "quickstart: %s\n", tmoe_error_message(ctx));
 *       printf("violin -> %s\n", answer);
 *
 *       tmoe_model_destroy(model);
 *       tmoe_suite_destroy(suite);
 *       tmoe_ctx_destroy(ctx);
 *       return strcmp(answer, "VIOLIN") != 0; // it must have learned that much
 *   }
 *
 * THE ALGORITHM ON ONE PAGE (book II is this page with all details; the tag names the room)
 *   Letters, beside equations: T rows (tokens, or tasks of a route), S keys or source tokens, D
 *   width, H heads, W width of a head, F width of the feed-forward network, V vocabulary, L layers,
 *   R routed layers, E experts of a layer, N tasks, K tasks of a step, B beams, k width of a task
 *   vector. A lower-case letter is an index. Matrices are row-major, weights are (out, in); d +
 *   name is the gradient of the loss.
 *
 *   task vector   e_t, k numbers                   hashed words of the instruction,       >>vectors
 *                                                  a trained row, or given by you
 *   embedding     h = token + P e_t                P a trained matrix (D, k); or the      >>layers
 *                                                  instruction is read before the input,
 *                                                  or the route alone tells the task
 *   logits        z_t = router(e_t)                (R, E); an MLP for each routed layer,   >>router
 *                                                  or one of nine other routers
 *   route         r_t,l = softmax(z_t,l / tau)     a distribution over a layer's experts;  >>router
 *                                                  or Gumbel, straight-through, average,
 *                                                  random
 *   PARAM mix     theta_bar = sum_e r_e theta_e    experts become one ordinary layer,         >>mix
 *                                                  which runs once
 *   OUTPUT mix    h' = sum_e r_e h_e               the paper: experts run side by side,       >>mix
 *                 h_e = layer_e(h)                 their outputs are averaged
 *   backward      PARAM   dtheta_e += r_e g,  dr_e = <g, theta_e - theta_bar>,            >>mix
 *                         g = dloss/dtheta_bar; dr_e up to what is equal for all e
 *                 OUTPUT  dh_e = r_e dh',     dr_e = <dh', h_e>
 *
 *   An expert is a complete layer of an encoder-decoder transformer, residual connections included
 *   (or, if you choose, its feed-forward network). Embeddings, the norms outside the layers and the
 *   head are shared by all tasks. A route belongs to a task. So a training step computes it once
 *   for each of its tasks, and evaluation computes it once for a task and reuses it: with the PARAM
 *   mix the merged model then is a dense model and answers at a dense model's speed. One baseline
 *   of the paper is an exception: TMOE_SELECT_RANDOM_EXAMPLE draws a route for each example in
 *   training. The PARAM mix has its price in training, which the comment of tmoe_mix_parameters
 *   states.
 *
 *   Papers: Ye, Zha, Ren 2022 (arXiv 2205.12701): the method. Muqeeth, Liu, Raffel 2023
 *   (2306.03745): soft merging. Jang 2017 (1611.01144): straight-through Gumbel. Loshchilov 2019
 *   (1711.05101): AdamW. Jordan 2024 (kellerjordan.github.io/posts/muon): Muon. Su 2021
 *   (2104.09864): rotary positions. Lewis 2020 (1910.13461): BART. We differ from the method's
 *   reference code in this: routes carry no noise in evaluation, the loss is the mean over target
 *   tokens, frozen parameters do not move, norms do not decay, unselected experts run no backward
 *   pass, the temperature is saved.
 *
 * CONCEPTS
 *   context     tmoe_ctx holds the allocator, the threads, the kernels and the last error. Contexts
 *               are independent of each other.
 *   group       the unit of work: examples of one task, packed one behind the other without
 *               padding. A training step's batch is several groups.
 *   tape        operations compute at once and record how to go back. There are three levels of
 *               use: tmoe_train and tmoe_answer; a loop of your own on tmoe_trainer_step,
 *               tmoe_route_of_task and tmoe_evaluate; a model of your own on tmoe_linear,
 *               tmoe_attention and the rest.
 *   equal bits  the same seed gives the same bits on 1, 2 or 64 threads, and after stopping and
 *               resuming: every chunk of work depends on the problem alone, sums have a fixed order
 *               (>>parallel), random numbers are functions of a counter (>>random), denormals
 *               (floats below 1.2e-38) count as zero (>>machine). Results of different
 *               instruction sets agree to rounding.
 *   files       safetensors. A file is written beside the old one, flushed and renamed. Everything
 *               that is read is validated before it is used.
 *
 * WHERE TO LOOK
 *   what a step costs as E grows             tmoe_mix_parameters
 *   the gradient of a route                  >>mix
 *   noise and temperature                    tmoe_config; >>router computes them
 *   ways to route an unseen task             tmoe_zero_shot, tmoe_route_of_vector; any route that
 *                                            you make can be given to the calls that answer;
 *                                            tmoe_few_shot_run learns one from a few lines
 *   threads and equal bits                   >>parallel, >>random; denormals: >>machine
 *   memory before anything is allocated      tmoe_training_bytes
 *   Muon, and what a step of it costs        tmoe_training.optimiser; >>polar
 *   a text that is too long: never cut       tmoe_trainer_create, tmoe_answer
 *   a task cut out as a dense model          tmoe_model_derive
 *   a new operation                          the box at the head of >>ops
 *
 * RULES for every function of the API, where its own comment says nothing else:
 *   in, out     a parameter marked "in" is only read, and only during the call; "out" is written.
 *   returns     a tmoe_result, or the object that was made, or NULL if the call failed.
 *   errors      tmoe_error_message() has the first cause, with the values and the rule that was
 *               broken. A call that fails changes nothing. Every call that returns a tmoe_result or
 *               an object may fail with TMOE_ERR_MEMORY; the others fail only where they say so.
 *   ownership   what a call makes is yours until its tmoe_..._destroy, which accepts NULL. Destroy
 *               all that was made on a context before the context.
 *   threads     a context, with all that was made on it, serves one thread at a time. "threads
 *               any": the function only reads, so several threads may call it while no thread
 *               writes.
 *   cost        constant time, or a copy of what is handed in.
 *
 * BUILD OPTIONS: define them before including; they are read where TASKMOE_IMPLEMENTATION is
 * defined. TMOE_NO_STDIO, _EVALUATION and _BART leave out declarations, too.
 *   TASKMOE_IMPLEMENTATION   the function bodies are compiled here
 *   TASKMOE_STATIC           all functions are static in this file; those that it does not call
 *                            are left out, which halves the time to compile
 *   TMOE_THREADS             the built-in pool of pthreads
 *   TMOE_NO_STDIO            no FILE is used: nothing is loaded or saved
 *   TMOE_NO_EVALUATION       without >>metrics, >>routes and >>fewshot
 *   TMOE_NO_BART             without >>bart
 *   TMOE_NO_SIMD, TMOE_NO_AVX512, TMOE_NO_AVX2, TMOE_NO_NEON   without these instruction sets
 *   TMOE_ALLOW_FAST_MATH     accepts -ffast-math, which breaks NaN checks and equal bits
 *   TMOE_MALLOC, TMOE_FREE   the default allocator; define both
 *   TMOE_DEF                 your own linkage or decoration of the functions
 *   TMOE_HEADER_FILENAME     the header's name, if it is not "taskmoe.h": it includes itself for
 *                            the kernels of each instruction set */
#if !defined(TASKMOE_H_INCLUDED)
#define TASKMOE_H_INCLUDED
/* ---- API: linkage, result codes, context (>>context) ---- */
#define TMOE_VERSION_MAJOR 0
#define TMOE_VERSION_MINOR 4
#define TMOE_VERSION_PATCH 0
#define TMOE_VERSION (TMOE_VERSION_MAJOR * 10000 + TMOE_VERSION_MINOR * 100 + TMOE_VERSION_PATCH)
#include <stddef.h>
#include <stdint.h>

#if defined(TMOE_DEF) /* the program's own */
#elif !defined(TASKMOE_STATIC)
#define TMOE_DEF extern
#elif defined(__GNUC__)
#define TMOE_DEF static __attribute__((unused))
#else
#define TMOE_DEF static
#endif
#ifdef __cplusplus
extern "C" {
#endif

/* Result codes. One list makes the enum and the texts of tmoe_result_name(). */
#define TMOE_RESULTS(X) \
    X(TMOE_OK, "ok") \
    X(TMOE_ERR_ARGUMENT, "bad argument") \
    X(TMOE_ERR_CONFIG, "configuration makes no sense") \
    X(TMOE_ERR_SHAPE, "shapes do not fit") \
    X(TMOE_ERR_MEMORY, "out of memory") \
    X(TMOE_ERR_FILE, "file cannot be read or written") \
    X(TMOE_ERR_FORMAT, "file is not what it should be") \
    X(TMOE_ERR_DATA, "task data cannot be used") \
    X(TMOE_ERR_NUMERIC, "not a finite number") \
    X(TMOE_ERR_CANCELLED, "stopped by the caller")
#define TMOEI_RESULT_ENUM(code, text) code,

typedef enum tmoe_result { TMOE_RESULTS(TMOEI_RESULT_ENUM) TMOE_RESULT_COUNT } tmoe_result;

#undef TMOEI_RESULT_ENUM

/* Instruction sets that there are kernels for. TMOE_ISA_AUTO is the best one of the processor. */
typedef enum tmoe_isa {
    TMOE_ISA_AUTO,
    TMOE_ISA_C,
    TMOE_ISA_NEON,
    TMOE_ISA_AVX2,
    TMOE_ISA_AVX512
} tmoe_isa;
typedef struct tmoe_ctx tmoe_ctx;

/* How a context is made. All zero is the default: malloc and free, one thread, the best instruction
 * set. */
typedef struct tmoe_ctx_config {
    /* Give memory, aligned as malloc's, and take it back; both or neither. They are called by the
     * caller's thread, except that tmoe_few_shot_run calls them from several threads at once. */
    void *(*alloc_fn)(size_t size_bytes, void *user);
    void (*free_fn)(void *ptr, size_t size_bytes, void *user);
    void *alloc_user;
    /* Threads that share the work, the caller's included, 1 to 64; 0 means 1. Without TMOE_THREADS
     * and parallel_fn it is one whatever is asked for: tmoe_ctx_threads tells. */
    int threads;
    /* Runs task(arg, 0) ... task(arg, n - 1), n <= threads, each once, at the same time where it
     * can, and returns when all are done. NULL: the built-in pool of TMOE_THREADS. */
    void (*parallel_fn)(void *user, void (*task)(void *arg, int lane), void *arg, int n);
    void *parallel_user;
    tmoe_isa isa; /* for tests; without the processor's or the build's support C is taken */
} tmoe_ctx_config;

/* tmoe_ctx_create, _destroy - memory, threads, kernels and the last error of all that is made on it
 *                                                                                         >>context
 *   config   in; NULL: all defaults
 *   returns  NULL: no memory, only one of alloc_fn and free_fn, threads not 0 to 64, isa no
 *            tmoe_isa, or the system refused a thread
 *   cost     3.1 MiB and 1.1 MiB for each thread, to pack matrices in */
TMOE_DEF tmoe_ctx *tmoe_ctx_create(const tmoe_ctx_config *config);
TMOE_DEF void tmoe_ctx_destroy(tmoe_ctx *ctx);
/* tmoe_error, tmoe_error_message - the first cause why the last call failed               >>context
 *   Every public call that can fail clears it first. Only the operations of a tape and
 *   tmoe_backward do not: the first cause stays until tmoe_tape_reset or another call clears it.
 *   returns  TMOE_OK and "" after success; else the code and a text with the values and the rule
 *            that was broken. The text is the context's, valid until the next call that can fail */
TMOE_DEF tmoe_result tmoe_error(const tmoe_ctx *ctx);
TMOE_DEF const char *tmoe_error_message(const tmoe_ctx *ctx);
/* tmoe_result_name - a result code in words, "unknown result" for other numbers           >>context
 *   threads  any */
TMOE_DEF const char *tmoe_result_name(tmoe_result result);
/* tmoe_ctx_isa - the instruction set in use: "AVX-512", "AVX2", "NEON" or "C"             >>context
 *   threads  any */
TMOE_DEF const char *tmoe_ctx_isa(const tmoe_ctx *ctx);
/* tmoe_ctx_threads - the number of threads that share the work, the caller's included     >>context
 *   returns  config.threads, but 1 where that is 0 or neither TMOE_THREADS nor parallel_fn provides
 *            threads
 *   threads  any */
TMOE_DEF int tmoe_ctx_threads(const tmoe_ctx *ctx);
/* tmoe_ctx_bytes - the bytes allocated on a context, without the context itself           >>context
 *   peak     out: the most so far; or NULL
 *   returns  the bytes that are allocated now */
TMOE_DEF size_t tmoe_ctx_bytes(const tmoe_ctx *ctx, size_t *peak);
/* tmoe_version - TMOE_VERSION of the implementation, to compare with the header's         >>context
 *   threads  any */
TMOE_DEF int tmoe_version(void);

/* ---- API: tape and operations (>>tape, >>ops, >>mix) ---- */

/* A row-major matrix of floats on a tape: element (r, c) is x[r * cols + c]. */
typedef struct tmoe_tensor {
    int rows, cols;
    float *x;       /* values (rows, cols) */
    float *dx;      /* gradient of the loss, same shape; except for leaves it is the tape's own */
    int wants_grad; /* 0: a constant, or made while the tape was not recording */
    int has_grad;   /* for the tape: 0 the next contribution to dx overwrites, 1 it adds */
} tmoe_tensor;

typedef struct tmoe_tape tmoe_tape;

typedef enum tmoe_activation {
    TMOE_NONE,
    TMOE_GELU, /* x Phi(x), by the error function */
    TMOE_RELU,
    TMOE_TANH,
    TMOE_SIGMOID
} tmoe_activation;

/* tmoe_tape_create, _destroy - an empty tape that records; frees a tape and its tensors   >>tape */
TMOE_DEF tmoe_tape *tmoe_tape_create(tmoe_ctx *ctx);
TMOE_DEF void tmoe_tape_destroy(tmoe_tape *tape);
/* tmoe_tape_reset - forgets all tensors and clears the context's error. The memory is kept, so a
 *   repeated step allocates nothing. */
TMOE_DEF void tmoe_tape_reset(tmoe_tape *tape);
/* tmoe_tape_record - on = 0: operations compute values only (inference); 1: they can be run
 *   backward. A new tape has 1. */
TMOE_DEF void tmoe_tape_record(tmoe_tape *tape, int on);
/* tmoe_leaf - wraps your memory as a tensor (rows, cols), rows >= 1, cols >= 1
 *   x        (rows, cols) in; must live until the reset
 *   dx       (rows, cols): tmoe_backward ADDS the gradient; NULL makes a constant. Only leaves keep
 *            their gradient: to see that of a tensor inside, cut the tape there with a leaf
 *   returns  a tensor that is valid until the tape's reset
 *   errors   TMOE_ERR_ARGUMENT: x is NULL, or a size is below 1 */
TMOE_DEF tmoe_tensor *tmoe_leaf(tmoe_tape *tape, int rows, int cols, float *x, float *dx);
/* tmoe_backward - adds d(loss)/d(leaf) to the dx of every leaf that has one. This uses up what was
 *   recorded: later operations that record refuse all those tensors, but not the leaves.
 *   loss     (1,1), recorded on this tape since its last backward pass
 *   errors   the first error of an operation, or TMOE_ERR_ARGUMENT for another loss: nothing is
 *            added. TMOE_ERR_MEMORY: some leaves have been added to.
 *   cost     about twice the forward pass. Walks from the last operation to the first. */
TMOE_DEF tmoe_result tmoe_backward(tmoe_tape *tape, tmoe_tensor *loss);

/* RULES for every operation, where its own comment says nothing else:
 *   in       tensors on this tape, only read; (T,D)
 *   returns  a tensor (T,D) that is valid until the tape's reset
 *   errors   NULL with TMOE_ERR_SHAPE. A NULL input, or an earlier error of the context, gives NULL
 *            and keeps the first cause. So calls can be nested, and checked once.
 *   grad     all tensors that go in
 *   keeps    nothing besides its inputs and its result: memory for the backward pass
 *   cost     T*D flop, and as much backward. The large ones use all lanes of the context. */

/* tmoe_linear - y = act(x w^T + b) + residual                                               >>ops
 *   x (T,D)   w (F,D)   b (1,F) or NULL   residual (T,F) or NULL   returns (T,F)
 *   act      TMOE_NONE, TMOE_GELU or TMOE_RELU; another is TMOE_ERR_ARGUMENT
 *   keeps    the value before act, 4*T*F bytes, unless act is TMOE_NONE
 *   cost     2*T*D*F flop; backward twice that */
TMOE_DEF tmoe_tensor *tmoe_linear(tmoe_tape *tape, tmoe_tensor *x, tmoe_tensor *w, tmoe_tensor *b,
    tmoe_activation act, tmoe_tensor *residual);
/* tmoe_layer_norm - y = gain * (x - mean) / sqrt(var + 1e-5) + bias, row by row; var is the mean
 *   square of x - mean (Ba 2016; 1e-5 as BART)                                              >>ops
 *   gain, bias (1,D)   keeps 8*T bytes   cost 8*T*D flop; backward twice that */
TMOE_DEF tmoe_tensor *tmoe_layer_norm(tmoe_tape *tape, tmoe_tensor *x, tmoe_tensor *gain,
    tmoe_tensor *bias);
/* tmoe_normalize - y = x / |x|, row by row; a row of zeros stays so, and gets no gradient. The
 *   product of two normalized matrices holds cosines                                         >>ops
 *   keeps 4*T bytes   cost 4*T*D flop; backward 4*T*D */
TMOE_DEF tmoe_tensor *tmoe_normalize(tmoe_tape *tape, tmoe_tensor *x);
/* tmoe_attention - y = softmax(q k^T / sqrt(D/heads) + mask) v for each sequence and head
 *   (Vaswani 2017, equation 1), sequences packed one behind the other                       >>ops
 *   q, kv      self-attention: kv = q = [q | k | v] (T,3D); cross: q (T,D), kv = [k | v] (S,2D)
 *   heads      at least 1, divides D
 *   q_offsets, kv_offsets   (sequences + 1) in, must live until the reset: sequence i has the rows
 *              offsets[i] .. offsets[i + 1] - 1, from 0 to the last row; 1 to 65536 rows of kv
 *   causal     1: row t of a sequence of T rows and S >= T keys sees the keys up to t + S - T
 *   returns    (T,D)
 *   keeps      4*T*heads bytes: the log-sum-exp; scores are computed again
 *   cost       4*T*S*D flop a sequence, about half of it if long and causal; backward 2.5 times */
TMOE_DEF tmoe_tensor *tmoe_attention(tmoe_tape *tape, tmoe_tensor *q, tmoe_tensor *kv, int heads,
    int sequences, const int *q_offsets, const int *kv_offsets, int causal);
/* tmoe_rotary - rotary positions (Su 2021, arXiv 2104.09864): the pair (i, i + W/2) of each head of
 *   width W is turned by the angle p * base^(-2i/W), p = position_ids_t. Turn q and k alike: then
 *   <q, k> depends on the difference of their positions only                                >>ops
 *   columns  the first ones of x are heads side by side, those of q and k; W divides it. Other
 *            columns, those of v, are copied: x may be [q | k | v]
 *   table    (P,W), a constant that tmoe_rotary_table has filled
 *   position_ids   (T) in, must live until the reset; 0 <= position < P, others are
 *            TMOE_ERR_ARGUMENT
 *   grad     x: dy, turned back
 *   cost     6 flop for a pair, no sine or cosine */
TMOE_DEF tmoe_tensor *tmoe_rotary(tmoe_tape *tape, tmoe_tensor *x, int columns, tmoe_tensor *table,
    const int *position_ids);
/* tmoe_rotary_table - cosines and sines for tmoe_rotary, computed in double and rounded once
 *   table    (positions, width) out: in row p the cosines of the width / 2 angles, then the sines
 *   width    of a head: even     base   above 1
 *   errors   TMOE_ERR_ARGUMENT     cost   a power, a sine and a cosine for each pair */
TMOE_DEF tmoe_result tmoe_rotary_table(tmoe_ctx *ctx, float *table, int positions, int width,
    float base);
/* tmoe_embedding - y_t = scale * table[ids_t] + positions[position_ids_t]                   >>ops
 *   table (V,D)   positions (P,D) or NULL   returns (count,D)   count at least 1
 *   ids, position_ids   (count) in, must live until the reset; 0 <= id < V, 0 <= position < P;
 *            others are TMOE_ERR_ARGUMENT. position_ids may be NULL where positions is.
 *   cost     2*count*D flop */
TMOE_DEF tmoe_tensor *tmoe_embedding(tmoe_tape *tape, tmoe_tensor *table, int count, const int *ids,
    float scale, tmoe_tensor *positions, const int *position_ids);
/* tmoe_cross_entropy - loss = weight * sum_t ((1 - s) nll_t + s / V * sum_v -log p_tv), where
 *   s = smoothing, p_t = softmax(logits_t), nll_t = -log p_t,target                         >>ops
 *   logits   (T,V); the backward pass may write its gradient over the values
 *   targets  (T) in, must live until the reset; below V; a negative one leaves its row out
 *   smoothing   0 <= smoothing < 1
 *   returns  (1,1)
 *   errors   TMOE_ERR_ARGUMENT: a target or the smoothing
 *   keeps    8*T bytes   cost 6*T*V flop; backward as much */
TMOE_DEF tmoe_tensor *tmoe_cross_entropy(tmoe_tape *tape, tmoe_tensor *logits, const int *targets,
    float smoothing, float weight);
/* tmoe_activate - y = f(x) element by element; TMOE_ERR_ARGUMENT where f is no tmoe_activation */
TMOE_DEF tmoe_tensor *tmoe_activate(tmoe_tape *tape, tmoe_tensor *x, tmoe_activation f);
/* tmoe_add, tmoe_multiply - y = a + b, y = a * b element by element; b is like a, or (1,D) and then
 *   used for every row of a. They, tmoe_affine and tmoe_sum run on one lane. */
TMOE_DEF tmoe_tensor *tmoe_add(tmoe_tape *tape, tmoe_tensor *a, tmoe_tensor *b);
TMOE_DEF tmoe_tensor *tmoe_multiply(tmoe_tape *tape, tmoe_tensor *a, tmoe_tensor *b);
/* tmoe_affine - y = scale * x + shift */
TMOE_DEF tmoe_tensor *tmoe_affine(tmoe_tape *tape, tmoe_tensor *x, float scale, float shift);
/* tmoe_sum - the sum of all elements, returns (1,1) */
TMOE_DEF tmoe_tensor *tmoe_sum(tmoe_tape *tape, tmoe_tensor *x);
/* tmoe_slice - columns first .. first + count - 1 of x, 0 <= first, first + count <= D; returns
 *   (T,count) */
TMOE_DEF tmoe_tensor *tmoe_slice(tmoe_tape *tape, tmoe_tensor *x, int first, int count);
/* tmoe_concat - count >= 1 parts side by side, each (T, any), returns (T, sum of columns) */
TMOE_DEF tmoe_tensor *tmoe_concat(tmoe_tape *tape, tmoe_tensor *const *parts, int count);
/* tmoe_reshape - the same values as (rows, cols), rows * cols = T * D; shares x's memory */
TMOE_DEF tmoe_tensor *tmoe_reshape(tmoe_tape *tape, tmoe_tensor *x, int rows, int cols);
/* tmoe_dropout - y = x * keep / (1 - p); keep is 0 with probability p, a function of (seed, stream,
 *   index of the element). The backward pass makes the mask again.
 *   p        0 <= p < 1, others are TMOE_ERR_ARGUMENT; 0 returns x itself */
TMOE_DEF tmoe_tensor *tmoe_dropout(tmoe_tape *tape, tmoe_tensor *x, float p, uint64_t seed,
    uint64_t stream);

/* How a router's logits become a route (Ye 2022, section 3). */
typedef enum tmoe_selection {
    TMOE_SELECT_SOFTMAX, /* r = softmax(z / tau) */
    TMOE_SELECT_GUMBEL, /* r = softmax((z + g) / tau) in training, softmax(z / tau) in evaluation */
    /* in training one-hot(argmax of z + g), with the gradient of the soft sample; in evaluation
     * one-hot(argmax z), whatever tau is */
    TMOE_SELECT_STRAIGHT_THROUGH,
    TMOE_SELECT_AVERAGE,     /* r = 1 / E */
    TMOE_SELECT_RANDOM_TASK, /* a fixed random top-n of E for each task and layer, weight 1/n */
    /* a new random one-hot for each example in training, fixed ones in evaluation */
    TMOE_SELECT_RANDOM_EXAMPLE
} tmoe_selection;

/* tmoe_select - r = softmax((z + noise) / tau) row by row                                   >>mix
 *   z (T,E)  logits     noise (T,E) in, or NULL     tau > 0, another is TMOE_ERR_ARGUMENT
 *   hard     1: r = one-hot(argmax) forward; backward as if r were the softmax s (Jang 2017)
 *   returns  (T,E), each row sums to 1
 *   grad     z: dz_j = s_j (dr_j - sum_e s_e dr_e) / tau
 *   keeps    s, 4*T*E bytes, where hard   cost T*E exponentials */
TMOE_DEF tmoe_tensor *tmoe_select(tmoe_tape *tape, tmoe_tensor *z, const float *noise, float tau,
    int hard);
/* tmoe_mix_outputs - y = sum_e r_e y_e, r_e = route[first + e]                              >>mix
 *   outputs  (expert_count) tensors (T,D); NULL: the expert did not run, and r_e must be 0
 *   route    (1,columns), first + expert_count <= columns
 *   grad     outputs: r_e dy;  route: <dy, y_e> for every expert that ran
 *   cost     2*E*T*D flop; backward twice that */
TMOE_DEF tmoe_tensor *tmoe_mix_outputs(tmoe_tape *tape, tmoe_tensor *const *outputs,
    int expert_count, tmoe_tensor *route, int first);
/* tmoe_mix_parameters - theta_bar_t = sum_e r_te theta_e, r_te = route[t][first + e]: soft merging
 *   (Muqeeth 2023)                                                                          >>mix
 *   experts    expert_count blocks of `block` floats, one behind the other
 *   gradients  like experts: the backward pass adds to them; NULL: the experts are constants
 *   route      (T,columns), a row for each of T tasks, first + expert_count <= columns,
 *              T * expert_count <= 65536
 *   returns    (T,block), the merged block of each task; for T = 1 and a one-hot route the chosen
 *              expert's own memory. experts and gradients must live until the reset.
 *   grad       with g = dl/dtheta_bar: dtheta_e += sum_t r_te g_t;  dr_te = <g_t, theta_e> - c_t,
 *              c_t the same for all experts, <g_t, theta_bar_t> where row t sums to 1. Behind a
 *              softmax c_t cancels (>>mix). It is left out for routes of any origin.
 *   cost       2*T*E*block flop, every expert is read once; backward twice that
 * WHAT A STEP COSTS AS E GROWS, with the PARAM mix, T tasks, n parameters in a layer of an expert:
 *   the layer      runs once, on theta_bar: does not grow
 *   merging        2*T*E*n flop forward, 4*T*E*n backward. A token costs the layer about 2*n and
 *                  4*n, so merging costs a task about as much as E more tokens would. With
 *                  STRAIGHT_THROUGH only an even route of exploration is merged. Backward, each
 *                  task reads all E experts for dr, about 3*E*n flop, and adds to one dtheta_e.
 *   the optimiser  moves all E experts, whatever the routes: their parameters, gradients and two
 *                  moments, 16*E*n bytes, are read, and written again
 *   an answer      2*E*n flop once for its task; from then on the model is dense */
TMOE_DEF tmoe_tensor *tmoe_mix_parameters(tmoe_tape *tape, float *experts, float *gradients,
    int expert_count, int block, tmoe_tensor *route, int first);

/* ---- API: tokenizers (>>tokenizer) ---- */
typedef struct tmoe_tokenizer tmoe_tokenizer;

typedef enum tmoe_token { /* special tokens */
    TMOE_TOKEN_BEGIN,     /* <s> */
    TMOE_TOKEN_PAD,       /* <pad> */
    TMOE_TOKEN_END,       /* </s> */
    TMOE_TOKEN_UNKNOWN,   /* <unk> */
    TMOE_TOKEN_MASK       /* <mask> */
} tmoe_token;

enum { /* flags of tmoe_tokenizer_encode and tmoe_tokenizer_decode, to be combined by | */
    TMOE_TOKENIZER_SPECIALS = 1,      /* encode: put <s> before and </s> behind the text */
    TMOE_TOKENIZER_SKIP_SPECIALS = 2, /* decode: leave special tokens out */
    /* encode: where the text spells a special token, such as "<mask>", it becomes that token;
     * without this flag they are encoded like any characters. Do not use it on untrusted text. */
    TMOE_TOKENIZER_FIND_SPECIALS = 4,
    /* encode: as if the text began with a space (add_prefix_space of Hugging Face) */
    TMOE_TOKENIZER_PREFIX_SPACE = 8,
    /* decode: remove the spaces before punctuation and contractions, as transformers does
     * (clean_up_tokenization_spaces): " ." becomes "." */
    TMOE_TOKENIZER_CLEAN_SPACES = 16
};

/* tmoe_tokenizer_bytes - a tokenizer whose tokens are bytes                            >>tokenizer
 *   returns  259 tokens: 0 is <s>, 1 is <pad>, 2 is </s>, byte b is 3 + b; there is no <unk> */
TMOE_DEF tmoe_tokenizer *tmoe_tokenizer_bytes(tmoe_ctx *ctx);
/* tmoe_tokenizer_train - byte-pair encoding (Sennrich 2016) on bytes, as GPT-2's       >>tokenizer
 *   The most frequent pair of neighbouring tokens becomes a token, until the vocabulary is full or
 *   no pair occurs twice. The same texts in the same order give the same tokenizer.
 *   texts       (count) in
 *   vocabulary  tokens wanted, 259 to 1,000,000: those of tmoe_tokenizer_bytes, then one a merge
 *   cost        merges * (different words + different pairs)
 *   errors      TMOE_ERR_ARGUMENT: vocabulary out of range, a text is NULL */
TMOE_DEF tmoe_tokenizer *tmoe_tokenizer_train(tmoe_ctx *ctx, const char *const *texts, size_t count,
    int vocabulary);
TMOE_DEF void tmoe_tokenizer_destroy(tmoe_tokenizer *tokenizer);
/* tmoe_tokenizer_vocabulary - the largest id + 1  threads any  >>tokenizer */
TMOE_DEF int tmoe_tokenizer_vocabulary(const tmoe_tokenizer *tokenizer);
/* tmoe_tokenizer_special - the id of a special token; -1: it has none  threads any  >>tokenizer */
TMOE_DEF int tmoe_tokenizer_special(const tmoe_tokenizer *tokenizer, tmoe_token which);
/* tmoe_tokenizer_encode - the tokens of a text                                         >>tokenizer
 *   text      (length bytes) in; any bytes, UTF-8 or not
 *   flags     SPECIALS, FIND_SPECIALS, PREFIX_SPACE
 *   ids       (capacity) out: the first tokens; NULL is fine with capacity 0
 *   count     out: the number of all tokens, also where it exceeds capacity, which is no error
 *   cost      n log n for a word of n bytes
 *   errors    TMOE_ERR_ARGUMENT: a NULL, another flag, a word of 256 MiB. After TMOE_ERR_MEMORY
 *             some of ids are written. */
TMOE_DEF tmoe_result tmoe_tokenizer_encode(const tmoe_tokenizer *tokenizer, const char *text,
    size_t length, int flags, int *ids, size_t capacity, size_t *count);
/* tmoe_tokenizer_decode - the text of tokens                                           >>tokenizer
 *   Where every byte has a token, decoding the tokens of a text gives the text, whatever its bytes;
 *   tokens in another order or cut short can give bytes that are no UTF-8.
 *   ids       (count) in, 0 <= id < vocabulary
 *   flags     SKIP_SPECIALS; CLEAN_SPACES, which is done only where the whole text fits
 *   text      (capacity) out: the tokens that fit, and a NUL if it fits too; NULL with capacity 0
 *   length    out: the bytes of the whole text without NUL, also where they exceed capacity
 *   errors    TMOE_ERR_ARGUMENT: a NULL, another flag, an id out of range */
TMOE_DEF tmoe_result tmoe_tokenizer_decode(const tmoe_tokenizer *tokenizer, const int *ids,
    size_t count, int flags, char *text, size_t capacity, size_t *length);

/* ---- API: tasks and their scores (>>suite, >>metrics) ---- */
/* UTF-8; outputs: all accepted answers */
typedef struct tmoe_example {
    const char *input;
    const char *const *outputs;
    int output_count;
} tmoe_example;

typedef enum tmoe_metric {
    /* equal in lower case without ASCII punctuation, a/an/the, double spaces */
    TMOE_METRIC_EXACT_MATCH,
    TMOE_METRIC_ACCURACY, /* equal in lower case */
    TMOE_METRIC_MACRO_F1, /* mean F1 of the labels that occur in answers or predictions */
    TMOE_METRIC_TOKEN_F1, /* bag-of-words F1 after normalising, best of the accepted answers */
    TMOE_METRIC_ROUGE_L,  /* longest common subsequence, as CrossFit computes it */
    TMOE_METRIC_MATTHEWS, /* correlation of "acceptable" in answers and predictions */
    /* correlation of numbers; what is no number counts as 3 (CrossFit's rule) */
    TMOE_METRIC_PEARSON,
    TMOE_METRICS
} tmoe_metric;

typedef enum tmoe_part { TMOE_PART_TRAIN, TMOE_PART_DEV, TMOE_PART_TEST } tmoe_part;

typedef struct tmoe_task {
    const char *name, *category, *instruction;
    tmoe_metric metric;
    const char *const *labels; /* closed sets only, else NULL */
    int label_count;
    const tmoe_example *train, *test; /* the task's own lines */
    int train_count, test_count;
    tmoe_part part; /* by the split: trained on, development, held out */
} tmoe_task;

typedef struct tmoe_suite tmoe_suite; /* tasks; read by tmoe_suite_count and tmoe_suite_task */

/* A task that a program makes, for tmoe_suite_add. Start from all zero. */
typedef struct tmoe_task_lines {
    const char *name, *category, *instruction;  /* UTF-8; category NULL: "none" */
    tmoe_metric metric;                         /* zero: TMOE_METRIC_EXACT_MATCH */
    tmoe_part part;                             /* zero: TMOE_PART_TRAIN */
    const char *const *inputs, *const *outputs; /* (count) each; outputs[i] answers inputs[i] */
    int count, test_count; /* lines; the last test_count of them, fewer than count, are for test */
} tmoe_task_lines;

/* tmoe_suite_create, tmoe_suite_destroy - an empty suite for tasks that a program makes  >>suite */
TMOE_DEF tmoe_suite *tmoe_suite_create(tmoe_ctx *ctx);
TMOE_DEF void tmoe_suite_destroy(tmoe_suite *suite);
/* tmoe_suite_add - adds a task with its lines to a suite                                   >>suite
 *   suite   in, out: pointers of tmoe_suite_task become invalid
 *   lines   in: all texts are copied
 *   errors  TMOE_ERR_ARGUMENT: a text or list is missing, not 0 <= test_count < count, an unknown
 *           metric or part
 *           TMOE_ERR_DATA: a text that is empty, NULL or not UTF-8, a second task of this name
 *   cost    a copy of the texts, and a comparison of the name with that of each task */
TMOE_DEF tmoe_result tmoe_suite_add(tmoe_suite *suite, const tmoe_task_lines *lines);
/* tmoe_suite_find - index of the task with this name, or -1; threads any                    >>suite
 *   cost  a comparison of names a task */
TMOE_DEF int tmoe_suite_find(const tmoe_suite *suite, const char *name);
/* tmoe_suite_count - the number of tasks of a suite; threads any                         >>suite */
TMOE_DEF int tmoe_suite_count(const tmoe_suite *suite);
/* tmoe_suite_task - task i of a suite; threads any                                          >>suite
 *   returns  the suite's own, valid until a task is added or the suite is destroyed; all tasks are
 *            one array, as tmoe_model_create takes it. NULL unless 0 <= i < count */
TMOE_DEF const tmoe_task *tmoe_suite_task(const tmoe_suite *suite, int i);
/* tmoe_metric_name - a metric's name in files; threads any                                  >>suite
 *   returns  "exact_match", "accuracy", "macro_f1", "token_f1", "rouge_l", "matthews" or "pearson";
 *            "unknown" for any other number */
TMOE_DEF const char *tmoe_metric_name(tmoe_metric metric);

#ifndef TMOE_NO_EVALUATION
/* tmoe_score - score of predictions by one of CrossFit's metrics (see tmoe_metric)        >>metrics
 *   predictions, examples  (count >= 1) in: the best of an example's answers counts; macro F1,
 *                          Matthews and Pearson take the first one
 *   score   out: 0 to 1; Matthews and Pearson -1 to 1. NaN: Pearson of numbers that are all equal
 *   errors  TMOE_ERR_ARGUMENT: count or metric out of range
 *   cost    a pass; Rouge-L: the product of the lengths; macro F1: count * count
 *   source  github.com/INK-USC/CrossFit, oddities included */
TMOE_DEF tmoe_result tmoe_score(tmoe_ctx *ctx, tmoe_metric metric, const char *const *predictions,
    const tmoe_example *examples, int count, double *score);

/* What tmoe_compare finds. [0] is the mean over tasks, [1] and [2] are the ends of its 95 %
 * bootstrap interval; NaN where it is undefined for all tasks. */
typedef struct tmoe_comparison {
    double relative_gain[3]; /* (new - base) / base, over the tasks whose base is above 0 */
    double difference[3];    /* new - base */
    int wins, ties, losses;  /* tasks: new above, equal to, below base */
    int zero_base;           /* tasks whose base is 0 or below: no relative gain */
    int undefined;           /* tasks with a score that is NaN: they count nowhere else */
} tmoe_comparison;

/* tmoe_compare - scores of a model against those of a base on the same tasks              >>metrics
 *   base, scores  (count >= 0) in: of each task
 *   seed          of 2,000 resamplings of the tasks, with replacement, that give the interval
 *   errors        TMOE_ERR_ARGUMENT: count below 0
 *   source        average relative gain: Ye, Lin, Ren 2021 (arXiv 2104.08835) */
TMOE_DEF tmoe_result tmoe_compare(tmoe_ctx *ctx, const double *base, const double *scores,
    int count, uint64_t seed, tmoe_comparison *result);

/* What tmoe_route_correlations tests. */
typedef struct tmoe_correlation_test {
    const float *routes;  /* (tasks, columns): columns = routed layers x experts */
    const float *feature; /* (tasks): 1 or 0 for instance, as a task is of a kind or not */
    int tasks, columns, permutations; /* each at least 0 */
    uint64_t seed;                    /* of the permutations */
} tmoe_correlation_test;

/* tmoe_route_correlations - which experts go with a feature of the tasks                   >>routes
 *   correlations  (columns) out: r_c, Pearson's, of column c with the feature; NaN: one is constant
 *   chances       (columns) out: the share of the permutations of the feature, the given order
 *                 among them, in which max |r| over the columns is at least |r_c|: this is
 *                 corrected for the number of columns. NaN as r_c
 *   errors        TMOE_ERR_ARGUMENT: a negative count
 *   cost          permutations * tasks * columns
 *   source        maximum statistic: Westfall, Young 1993 */
TMOE_DEF tmoe_result tmoe_route_correlations(tmoe_ctx *ctx, const tmoe_correlation_test *test,
    double *correlations, double *chances);

/* Two clusters that become one. */
typedef struct tmoe_join {
    int a, b;      /* a row, or rows + the index of an earlier join */
    int size;      /* rows in the new cluster */
    double height; /* distance of a and b */
} tmoe_join;

/* tmoe_cluster - hierarchical clustering, Euclidean distances, average linkage             >>routes
 *   x       (rows, cols) in, routes for instance
 *   joins   (rows - 1) out, nearest first
 *   errors  TMOE_ERR_ARGUMENT: a negative size
 *   cost    rows^2 * cols + rows^3
 *   source  Sokal, Michener 1958 */
TMOE_DEF tmoe_result tmoe_cluster(tmoe_ctx *ctx, const float *x, int rows, int cols,
    tmoe_join *joins);
#endif
/* ---- API: model (>>model, >>router) ---- */
/* A route is (routed layers, experts), row-major: for each routed layer the weights of its experts,
 * which sum to 1. */
typedef struct tmoe_model tmoe_model;

typedef enum tmoe_norm { /* where a sublayer is normed: x + f(norm(x)), or norm(x + f(x)) as BART */
    TMOE_NORM_PRE,
    TMOE_NORM_POST
} tmoe_norm;

typedef enum tmoe_position_kind { /* how a model knows the order of tokens */
    TMOE_POSITION_LEARNED, /* a trained row for each position, added to the embedding, as BART */
    TMOE_POSITION_ROTARY   /* self-attention turns queries and keys by their positions: see
                            * tmoe_rotary. No parameters; scores know distances. */
} tmoe_position_kind;

typedef enum tmoe_mix { /* what a route averages */
    TMOE_MIX_PARAM,     /* the experts' parameters; one layer runs on the average */
    TMOE_MIX_OUTPUT     /* the experts' outputs, as in the paper; those with r > 0 run, and in
                         * training by STRAIGHT_THROUGH all run forward */
} tmoe_mix;

typedef enum tmoe_expert_kind { /* what a layer has several of */
    TMOE_EXPERT_LAYER,          /* all of it */
    TMOE_EXPERT_FFN             /* its feed-forward network with norm; attention is shared */
} tmoe_expert_kind;

enum { TMOE_ENCODER = 1, TMOE_DECODER = 2 }; /* bits of tmoe_config.expert_places */

/* How the layers are told which task it is, beside the route: bits of tmoe_config.task_input. With
 * none of them the route alone tells it; a dense model then only sees the input. */
enum {
    TMOE_TASK_TEXT = 1,   /* texts to read are "instruction \n input" */
    TMOE_TASK_VECTOR = 2, /* to every embedding P e is added, e the task's vector, P (width,
                           * vector_width) a trained matrix of the encoder's, or the decoder's */
    TMOE_TASK_ROW = 4     /* a trained row in the place of P e: what tmoe_model_derive makes of it
                           * where one task is cut out and positions are TMOE_POSITION_ROTARY */
};

typedef enum tmoe_router_kind { /* ten of the paper's code; LINEAR is an MLP of two layers */
    TMOE_ROUTER_LINEAR,
    TMOE_ROUTER_LINEAR_LAYER_SPECIFIC,
    TMOE_ROUTER_RNN,
    TMOE_ROUTER_RNN_LAYER_SPECIFIC,
    TMOE_ROUTER_GRU,
    TMOE_ROUTER_GRU_LAYER_SPECIFIC,
    TMOE_ROUTER_LSTM,
    TMOE_ROUTER_LSTM_LAYER_SPECIFIC,
    TMOE_ROUTER_TRANSFORMER,
    TMOE_ROUTER_TRANSFORMER_LAYER_SPECIFIC,
    TMOE_ROUTER_OWN /* yours: tmoe_ctx_set_router */
} tmoe_router_kind;

typedef enum tmoe_vector_kind { /* what the router knows of a task */
    TMOE_VECTOR_TEXT,           /* hashed words and character 3-grams of its instruction; fixed */
    TMOE_VECTOR_LEARNED,        /* a trained row for each task */
    TMOE_VECTOR_GIVEN           /* fixed rows: small random numbers until tmoe_task_vector_set */
} tmoe_vector_kind;

/* What a model is. Start from tmoe_config_default(); tmoe_model_create checks all fields and names
 * all that are wrong in one message. Fields marked "kept" must stay in tmoe_model_derive.
 *
 * Noise and temperature. Where the selection has a router (SOFTMAX, GUMBEL, STRAIGHT_THROUGH),
 *   tau(step) = max(temperature * exp(-temperature_decay * step), temperature_min)
 * divides the logits in training and in evaluation; step counts the model's optimiser steps and is
 * saved with it. Gumbel noise (GUMBEL, STRAIGHT_THROUGH) and exploration are for training only. */
typedef struct tmoe_config {
    int width;                          /* kept; of all activations; 1 to 1,048,576, as any size */
    int encoder_heads, decoder_heads;   /* kept; each divides width */
    int encoder_ffn, decoder_ffn;       /* kept; widths of the feed-forward networks */
    int encoder_layers, decoder_layers; /* kept; at least 1 each */
    int vocabulary;                     /* kept; 0: as many symbols as the tokenizer has */
    /* kept; of the longest texts, special tokens included: 3 and 2 to 65,536. 0: tmoe_train fits
     * it to its suite. */
    int source_tokens, target_tokens;
    tmoe_norm norm;             /* kept */
    tmoe_activation activation; /* kept; TMOE_GELU or TMOE_RELU */
    int scale_embedding;        /* kept; 1: token embeddings times sqrt(width) */
    int experts;                /* of a routed layer, 1 to 64; 1: the model is dense */
    int expert_places;          /* TMOE_ENCODER | TMOE_DECODER: which layers are routed */
    tmoe_expert_kind expert_kind;
    float expert_noise; /* experts begin as copies plus noise: this times the matrix's init_std */
    tmoe_mix mix;
    tmoe_selection selection;
    int random_n; /* experts of a task with TMOE_SELECT_RANDOM_TASK, 1 to experts */
    float temperature, temperature_decay, temperature_min; /* see above; decay is per step */
    float exploration; /* chance of a random or the uniform route, per layer and task in training */
    tmoe_router_kind router;
    int router_hidden; /* width of the router's hidden layer, at most 65,536 */
    tmoe_vector_kind vectors;
    int vector_width; /* of a task vector */
    /* above 0: router and layers read the vector times vector_length / sqrt(vector_width), so a
     * vector of text has this length whatever its width. It sets how fast what reads it learns, as
     * AdamW moves each weight alike. 0: they read it as it is */
    float vector_length;
    int word_pairs;       /* 1: pairs of neighbouring words count in text vectors; 0: words alone */
    int task_input;       /* TMOE_TASK_ bits */
    int begin_in_target;  /* kept; 1: targets begin with <s>, as BART's do */
    int specials_in_text; /* 1: <mask> and the like in a text are tokens */
    int start_id, begin_id, pad_id, end_id; /* kept; the decoder's first token; <s>, <pad>, </s> */
    tmoe_position_kind positions;           /* kept; ROTARY needs heads of an even width */
    float rotary_base; /* kept; above 1: the slowest pair of ROTARY turns by about 1/base a token */
    float init_std; /* of all matrices, and of P e; 0: 1/sqrt(fan in), embeddings 1/sqrt(width) */
    uint64_t seed;  /* of the random start and of random routes */
} tmoe_config;

/* A parameter of a router of your own. */
typedef struct tmoe_own_parameter {
    const char *name; /* unlike the others'; "router.own.NAME" in files */
    int rows, cols;   /* at least 1; a matrix of more than one row decays */
    float init_std;   /* it begins normal with this deviation; 0: as zeros */
} tmoe_own_parameter;

/* A router of your own. Its parameters are trained, saved and loaded with the model. */
typedef struct tmoe_own_router {
    /* Returns logits (K, columns) for K tasks, made by operations of this tape; columns is routed
     * layers x experts.
     *   vectors     (K, vector_width), as tmoe_config.vector_length says
     *   parameters  a tensor each, in the order of the list
     * Values of tensors must not be read in it: while memory is planned there are none. NULL, after
     * a failed operation or of your own accord, ends the call that needs the routes. */
    tmoe_tensor *(*logits)(void *user, tmoe_tape *tape, tmoe_tensor *vectors,
        tmoe_tensor *const *parameters, int columns);
    void *user;
    const tmoe_own_parameter *parameters; /* (parameter_count >= 0) */
    int parameter_count;
} tmoe_own_router;

/* tmoe_ctx_set_router - what TMOE_ROUTER_OWN is in models that are made or loaded from now on
 *   own      in, or NULL: none; copied, but what it points to must live as long as such models. A
 *            file holds the parameters' values: give the same list before it is loaded.
 *            tmoe_model_derive takes it from the model that it begins with if the context has none
 *   threads  logits is called by the thread that trains or asks; tmoe_few_shot_run calls it from
 *            several threads */
TMOE_DEF void tmoe_ctx_set_router(tmoe_ctx *ctx, const tmoe_own_router *own);

/* tmoe_config_default - a small model: width 96, 2 + 2 layers of 4 experts, PRE, PARAM, SOFTMAX,
 *   ROTARY, TMOE_TASK_VECTOR of text vectors 512 wide, texts of at most 128 and 64 tokens
 *   threads any */
TMOE_DEF tmoe_config tmoe_config_default(void);

/* tmoe_model_create - makes a model with random weights                                     >>model
 *   config     in; NULL: the default
 *   tokenizer  in, copied; NULL: the model takes token ids only, config->vocabulary says how many
 *   tasks      (task_count >= 0) in: name, instruction, category (or NULL) of the tasks it knows:
 *              it can be trained on these. At least one with TMOE_TASK_VECTOR, the default, or with
 *              several experts
 *   errors     TMOE_ERR_CONFIG; TMOE_ERR_ARGUMENT: a task without name or instruction
 *   cost       a random number for each parameter */
TMOE_DEF tmoe_model *tmoe_model_create(tmoe_ctx *ctx, const tmoe_config *config,
    const tmoe_tokenizer *tokenizer, const tmoe_task *tasks, int task_count);
TMOE_DEF void tmoe_model_destroy(tmoe_model *model);

/* tmoe_model_derive - makes a model that begins with the weights of another                 >>model
 *   from    in, of any context; its tokenizer and generation are copied, too
 *   route   in, of from: a routed layer begins as theta = sum_e r_e theta_e. NULL: a layer with as
 *           many experts as before keeps them, any other begins as their mean
 *   config  in; fields marked kept must be from's (vocabulary may be 0); with TMOE_TASK_VECTOR in
 *           both, what makes vectors too; TMOE_TASK_ROW always. The step is then 0. NULL: from's
 *           config, and its step
 *   tasks   as tmoe_model_create
 *   out     experts that are not kept are copies with expert_noise; router and task vectors as
 *           tmoe_model_take_router. Dense to E experts is upcycling (arXiv 2212.05055); NULL to 1
 *           is MHR-mu; a route to 1 expert cuts a task out: with a one-hot route the dense model
 *           gives the mixture's bits, else with PARAM its numbers to rounding, and with OUTPUT an
 *           approximation, as it averages parameters.
 *           Where config leaves out from's TMOE_TASK_VECTOR, the vector of the one task, known to
 *           from or else that of its instruction, becomes a constant with the same bits: a part of
 *           the learned positions, or a row (TMOE_TASK_ROW). Where it adds TMOE_TASK_VECTOR, P
 *           begins as 0
 *   errors  TMOE_ERR_CONFIG: fields that must stay; experts that are layers kept as FFNs; several
 *           tasks, or none, where a vector becomes a constant */
TMOE_DEF tmoe_model *tmoe_model_derive(tmoe_ctx *ctx, const tmoe_model *from, const float *route,
    const tmoe_config *config, const tmoe_task *tasks, int task_count);

/* A parameter of a model: a matrix, or with one row a vector. */
typedef struct tmoe_parameter {
    const char *name;    /* as in a saved file; the model's own */
    const float *values; /* (rows, cols); the model's own, until it is trained or destroyed */
    int rows, cols;
} tmoe_parameter;

/* tmoe_model_parameter - parameter i of a model, in the order of its file                   >>model
 *   i          from 0 on
 *   parameter  out; all zero past the last one
 *   returns    1; 0 past the last one, or for i < 0
 *   threads    any */
TMOE_DEF int tmoe_model_parameter(const tmoe_model *model, int i, tmoe_parameter *parameter);

/* tmoe_model_parameter_set - overwrites a parameter                                         >>model
 *   name    in: as tmoe_parameter.name
 *   values  (rows, cols) in
 *   errors  TMOE_ERR_ARGUMENT: no such parameter, a NULL, or a value that is not finite
 *   cost    a search through the names, and a copy. Merged experts are merged anew */
TMOE_DEF tmoe_result tmoe_model_parameter_set(tmoe_model *model, const char *name,
    const float *values);

/* tmoe_model_take_router - copies router and task vectors of another model into this one    >>model
 *   from     in. Where the vectors' widths differ, nothing is copied. The router is copied if its
 *            kind, hidden width, vector_length, routed layers and experts agree; the
 *            vectors of tasks of the same name are, unless this model's are TMOE_VECTOR_TEXT.
 *   returns  1: the router was copied; else 0 */
TMOE_DEF int tmoe_model_take_router(tmoe_model *model, const tmoe_model *from);

/* tmoe_model_config, _tokenizer, _task_count, _task - what a model has; the model's own
 *   task    0 <= task < count, else NULL: name, category, instruction, no lines
 *   out     the tokenizer is NULL where the model has none; vocabulary of the config is never 0
 *   threads any */
TMOE_DEF const tmoe_config *tmoe_model_config(const tmoe_model *model);
TMOE_DEF const tmoe_tokenizer *tmoe_model_tokenizer(const tmoe_model *model);
TMOE_DEF int tmoe_model_task_count(const tmoe_model *model);
TMOE_DEF const tmoe_task *tmoe_model_task(const tmoe_model *model, int task);

/* tmoe_model_find_task - index of the known task of this name, or -1; instructions do not count
 *   threads any   cost  a comparison with each task */
TMOE_DEF int tmoe_model_find_task(const tmoe_model *model, const char *name);

/* tmoe_model_parameters - number of parameters
 *   active  out or NULL: those of the dense model that one task's layers are merged into
 *   threads any */
TMOE_DEF size_t tmoe_model_parameters(const tmoe_model *model, size_t *active);

/* How answers are searched, as by transformers. Lengths are in tokens, start token included. */
typedef enum tmoe_early_stopping { /* stop when there are `beams` finished answers ... */
    TMOE_EARLY_STOPPING_FALSE,     /* and the best running one, scored at its length, is worse */
    TMOE_EARLY_STOPPING_TRUE,      /* at once */
    TMOE_EARLY_STOPPING_NEVER      /* and no running one of any length can become better */
} tmoe_early_stopping;

typedef struct tmoe_generation {
    int beams;                  /* 1: greedy */
    int max_length, min_length; /* max_length 0: as long as the model can */
    int no_repeat_ngram;        /* so many tokens in a row may not repeat; 0: they may */
    int returned;               /* answers of a request, 1 <= returned <= beams */
    float length_penalty;       /* a score is the sum of log p divided by length to this power */
    tmoe_early_stopping early_stopping;
    int forced_begin_id, forced_end_id; /* first token; last at max_length; -1: not forced */
} tmoe_generation;

/* tmoe_model_generation - how tmoe_answer_many searches (greedily; BART: as its folder says); the
 * model's own, yours to change */
TMOE_DEF tmoe_generation *tmoe_model_generation(tmoe_model *model);

/* tmoe_routed_layers - number of routed layers; 0: the model is dense.   threads any */
TMOE_DEF int tmoe_routed_layers(const tmoe_model *model);

/* tmoe_routed_layer_name - "encoder 0", "decoder 3" ...; "" unless 0 <= routed_layer < their number
 *   text    (size bytes) out, cut to fit   threads any */
TMOE_DEF void tmoe_routed_layer_name(const tmoe_model *model, int routed_layer, char *text,
    size_t size);

/* tmoe_model_temperature - tau at the model's step (see tmoe_config).   threads any */
TMOE_DEF float tmoe_model_temperature(const tmoe_model *model);

/* tmoe_route_of_task - the route of a known task                                           >>router
 *   task    0 <= task < count, else TMOE_ERR_ARGUMENT      route  out
 *   cost    a router pass over all tasks if parameters have changed since the last, else a copy */
TMOE_DEF tmoe_result tmoe_route_of_task(tmoe_model *model, int task, float *route);

/* tmoe_route_of_vector - what the router makes of any task vector                          >>router
 *   vector  (vector_width) in      route  out      cost  a router pass
 *   errors  TMOE_ERR_ARGUMENT: no routed layer, or a selection without a router */
TMOE_DEF tmoe_result tmoe_route_of_vector(tmoe_model *model, const float *vector, float *route);

/* How an unseen task gets a route. A selection without a router (AVERAGE, RANDOM_TASK,
 * RANDOM_EXAMPLE) knows nothing of tasks: there each of the three is AVERAGE. */
typedef enum tmoe_zero_shot {
    /* The router reads the instruction's text vector. With LEARNED and GIVEN vectors, as NEAREST:
     * it was not trained on text. */
    TMOE_ZERO_SHOT_ROUTER,
    /* r = sum_t w_t r_t over the known tasks, w = softmax(20 cos) of instructions' text vectors */
    TMOE_ZERO_SHOT_NEAREST,
    TMOE_ZERO_SHOT_AVERAGE /* the same weight for all enabled experts */
} tmoe_zero_shot;

/* tmoe_route_unseen - a route for a task that is known by its instruction only             >>router
 *   instruction  in      how  a tmoe_zero_shot; else, or for NULL, TMOE_ERR_ARGUMENT   route  out
 *   cost    at most a router pass, and tasks * vector_width */
TMOE_DEF tmoe_result tmoe_route_unseen(tmoe_model *model, const char *instruction,
    tmoe_zero_shot how, float *route);

/* tmoe_vector_unseen - the vector of a task that is known by its instruction only          >>router
 *   vector   (vector_width) out: its text vector; with LEARNED and GIVEN vectors, for which text
 *            says nothing, sum_t w_t e_t over the known tasks, w as in TMOE_ZERO_SHOT_NEAREST
 *   errors   TMOE_ERR_ARGUMENT: the instruction is NULL
 *   cost     at most tasks * vector_width */
TMOE_DEF tmoe_result tmoe_vector_unseen(tmoe_model *model, const char *instruction, float *vector);

/* tmoe_text_vector - the vector of a text that models of this config use                 >>vectors
 *   config   in: its vector_width and word_pairs are read
 *   vector   (vector_width) out: of length sqrt(vector_width); 0 for a text without a word
 *   errors   TMOE_ERR_ARGUMENT, without a message: a NULL, or a width below 1
 *   threads  any      cost  a pass over the text, and vector_width
 *   source   feature hashing: Weinberger 2009 */
TMOE_DEF tmoe_result tmoe_text_vector(const tmoe_config *config, const char *text, float *vector);

/* tmoe_model_nearest_tasks - known tasks by cosine of instructions' text vectors, nearest first
 *   tasks, cosines   (count) out; -1 and -2 after the last task
 *   out     number of tasks written      cost  tasks * vector_width      thread  as the model */
TMOE_DEF int tmoe_model_nearest_tasks(tmoe_model *model, const char *instruction, int count,
    int *tasks, float *cosines);

/* tmoe_expert_set_enabled - takes an expert out of all routes, or gives it back            >>router
 *   layer   0 <= layer < routed layers      expert  0 <= expert < E
 *   enabled 0: masked, in training too; else enabled, as all are at first. It is not saved,
 *           and tmoe_model_derive and TMOE_TUNE_VECTOR do not take it over
 *   errors  TMOE_ERR_ARGUMENT: no such expert, or the last enabled one of a layer */
TMOE_DEF tmoe_result tmoe_expert_set_enabled(tmoe_model *model, int layer, int expert, int enabled);

/* tmoe_task_vector_set - sets a known task's vector; made for TMOE_VECTOR_GIVEN
 *   vector  (vector_width) in      errors  TMOE_ERR_ARGUMENT: no such task, nothing that
 *           reads vectors */
TMOE_DEF tmoe_result tmoe_task_vector_set(tmoe_model *model, int task, const float *vector);

/* ---- API: training (>>training) ---- */
typedef struct tmoe_trainer tmoe_trainer;

/* What a training moves: bits of tmoe_training.train. */
enum {
    TMOE_TRAIN_LAYERS = 1,
    TMOE_TRAIN_ROUTER = 2,
    TMOE_TRAIN_TASKS = 4, /* vectors, where they are TMOE_VECTOR_LEARNED */
    TMOE_TRAIN_SHARED =
        8, /* embeddings, learned positions, P of TMOE_TASK_VECTOR, norms outside the layers */
    TMOE_TRAIN_MODEL = TMOE_TRAIN_LAYERS | TMOE_TRAIN_SHARED,
    TMOE_TRAIN_ALL = TMOE_TRAIN_MODEL | TMOE_TRAIN_ROUTER | TMOE_TRAIN_TASKS
};

/* What tmoe_trainer_step reports and the progress callback is called with. */
typedef struct tmoe_progress {
    int64_t step;          /* optimiser steps done */
    int steps;             /* of this training */
    const char *label;     /* tmoe_training.label, or "" */
    tmoe_trainer *trainer; /* to save it, or to answer with its model */

    /* Losses, in nats a target token. */
    float loss;                 /* of the batch, with smoothing, regularisation and balance */
    float validation_loss;      /* without noise and smoothing; NaN: not measured now */
    float best_validation_loss; /* NaN: never measured */
    float gradient_norm;        /* before clipping */

    float lr_model;
    float lr_router;
    float lr_tasks;
    float temperature; /* of the next step */

    /* Means over the step's tasks; the arrays are valid until the next step. */
    int routed_layers;
    const float *route_entropy; /* (routed layers) in nats; ln(experts) is even */
    const float *expert_use;    /* (routed layers, experts) of the routes */

    /* Since this process began or resumed the training. */
    double tokens_per_second; /* source and target tokens */
    double seconds;
    double seconds_left;
} tmoe_progress;

/* What moves the weight matrices of the transformer layers. Everything else (embeddings, norms,
 * biases, router, task vectors) is moved by AdamW. */
typedef enum tmoe_optimiser {
    TMOE_OPTIMISER_ADAMW,
    TMOE_OPTIMISER_MUON /* Jordan 2024: an orthogonal matrix; see lr_matrices */
} tmoe_optimiser;

/* How to train. Start from tmoe_training_default(); tmoe_trainer_create checks all fields. */
typedef struct tmoe_training {
    /* A step takes tasks_per_step tasks and examples_per_task lines of each, or all there are. Both
     * come in epochs: all once, in a random order, before any comes again. */
    int steps;             /* at least 1 */
    int tasks_per_step;    /* 1 to 120 */
    int examples_per_task; /* 1 to 1,024; 0: as many as make 64 lines a step */
    uint64_t seed;         /* of batches, noise and dropout */

    /* Learning rates: they rise linearly to these values, then fall linearly to 0. */
    float lr_model; /* with Muon not of the layers' matrices */
    float lr_router;
    float lr_tasks; /* of learned task vectors */
    float warmup;   /* the fraction of the steps in which they rise */

    /* AdamW. */
    float weight_decay; /* of what AdamW moves: matrices and task vectors, not biases and norms */
    float beta1;
    float beta2;
    float adam_epsilon;
    float clip; /* largest norm of the gradient; 0: any */

    /* Muon: of the momentum of a matrix only the directions count, not how long they are. A step
     * changes all of them by lr_matrices, times sqrt(rows / columns) where that is above 1. The
     * clip therefore does not shorten a step; it weighs the gradients of several steps in the
     * momentum. A matrix without a gradient rests, as that of an expert that no task of the step
     * was given to: its momentum is old, and a step along it would be as long as any. */
    tmoe_optimiser optimiser;
    float lr_matrices;  /* rises and falls as the other rates; those move what AdamW moves */
    float momentum;     /* 0 <= it < 1 */
    float matrix_decay; /* weight decay of these matrices, in place of weight_decay */
    int matrix_turns;   /* 1: in turns: a step moves one expert of each layer, by E times the rate
                         * and decay; the momentum of all is updated. Costs an E-th */

    float label_smoothing; /* 0 <= it < 1, as dropouts, beta1 and beta2; weights and rates >= 0 */
    float dropout;
    /* Of the task vectors that the router reads, each time anew: it may not rely on a single word
     * of an instruction, so unseen instructions get better routes. */
    float router_dropout;
    /* Weight of the experts' mean distance: it draws them together. Costs about 3 E (E - 1) n flop
     * for each routed layer of E experts with n parameters, on one lane. */
    float expert_regularisation;
    float load_balance; /* weight of the uneven use of experts over the step's tasks */

    /* What moves. Other parameters stay, and so do their moments. */
    int train;           /* TMOE_TRAIN_ bits */
    int alternate_steps; /* n > 0: n steps of the model, n of router and vectors, in turns */

    int validation_lines;     /* kept back of each task's training lines, at most half of them */
    int evaluate_every_steps; /* measure the validation loss so often, keep the best; 0: never */
    int patience; /* stop after so many measurements in a row without a new best; 0: never */

    int vocabulary; /* tmoe_train: symbols of the tokenizer that it trains; 0: bytes */

    /* Called after each step; if it returns not 0, the training stops. It may save the trainer or
     * its model and answer with the model, but not step, run or destroy them. */
    int (*progress)(void *user, const tmoe_progress *progress);
    void *progress_user;
    const char *label; /* copied, for the callback; or NULL */

    /* Several machines train equal models on lines of their own, in equal steps. Once a step
     * all_reduce replaces each gradient by its sum over the machines. NULL: one machine. */
    void (*all_reduce)(void *user, float *gradients, size_t count);
    void *all_reduce_user;
    int machines; /* the sum is divided by it; 0 or 1: one */
} tmoe_training;

/* Bytes that a training takes. */
typedef struct tmoe_training_memory {
    size_t parameters;
    /* Of all parameters from the first to the last tensor that is trained, and so for moments, best
     * and the count of all_reduce. */
    size_t gradients;
    size_t moments; /* two; of matrices that Muon moves one */
    size_t best;    /* a copy of the best parameters, with evaluate_every_steps */
    size_t step;    /* tapes (with PARAM mix and a trained router they hold a merged model and its
                  * gradient for each of the step's tasks), batch, validation, Muon's scratch */
    size_t total;
} tmoe_training_memory;

/* tmoe_training_default - 2,500 steps of 64 lines; everything moves.  threads any */
TMOE_DEF tmoe_training tmoe_training_default(void);

/* Parameters of your own: leaves of a tape. */
typedef struct tmoe_trained {
    float *values, *gradients; /* (count) each; those of tmoe_leaf */
    float *moment1, *moment2;  /* (count) each; zeros before the first step */
    size_t count;
} tmoe_trained;

/* tmoe_adamw - one step of AdamW (Loshchilov 2019) on parameters of your own            >>training
 *   how    in, or NULL: default; its beta1, beta2, adam_epsilon and weight_decay are read
 *   rate   learning rate of this step, at least 0
 *   step   number of the step, from 1 on
 *   what   in: what it points to moves; the gradients are cleared for the next step
 *   errors TMOE_ERR_ARGUMENT: a number out of range, a NULL. TMOE_ERR_NUMERIC: a gradient is not
 *          finite. Then nothing changes
 *   cost   a pass over values, gradients and moments, on all lanes */
TMOE_DEF tmoe_result tmoe_adamw(tmoe_ctx *ctx, const tmoe_training *how, float rate, int64_t step,
    const tmoe_trained *what);

/* ---- API: settings by name (>>settings) ---- */

typedef enum tmoe_settings { TMOE_SETTINGS_CONFIG, TMOE_SETTINGS_TRAINING } tmoe_settings;

/* tmoe_config_set, tmoe_training_set - sets a field that is known by its name            >>settings
 *   config, training  in, out
 *   name     in: of a number or an enum, as in the struct: "experts", "lr_model"
 *   value    in: a number, with a point whatever the locale is. An enum in words: the end of its
 *            constant in small letters, "rotary" of TMOE_POSITION_ROTARY. Bits: such words joined
 *            by '|', as "text|vector", or "none"
 *   errors   TMOE_ERR_ARGUMENT: no such field; TMOE_ERR_CONFIG: not a value of it, which
 *            tmoe_setting_values lists. Both without a message: there is no context.
 *            Whether the fields fit each other is checked where they are used
 *   threads  any, for different structs */
TMOE_DEF tmoe_result tmoe_config_set(tmoe_config *config, const char *name, const char *value);
TMOE_DEF tmoe_result tmoe_training_set(tmoe_training *training, const char *name,
    const char *value);

/* tmoe_training_set_progress - sets the callback of a training                           >>settings
 *   It is for languages that do not know the struct's fields: they give it room and set all fields
 *   by name.
 *   training        in, out
 *   progress, user  in: as training->progress and training->progress_user
 *   threads         any, for different structs */
TMOE_DEF void tmoe_training_set_progress(tmoe_training *training,
    int (*progress)(void *user, const tmoe_progress *progress), void *user);

/* tmoe_config_get, tmoe_training_get - a field as a text that sets the same value        >>settings
 *   config, training, name  in
 *   text     (size) out: ends with 0; cut where it does not fit. 160 are enough
 *   errors   TMOE_ERR_ARGUMENT: no such field; it does not fit
 *   threads  any */
TMOE_DEF tmoe_result tmoe_config_get(const tmoe_config *config, const char *name, char *text,
    size_t size);
TMOE_DEF tmoe_result tmoe_training_get(const tmoe_training *training, const char *name, char *text,
    size_t size);

/* tmoe_setting_name - the names of all fields that can be set, one by one                >>settings
 *   of       of tmoe_config or of tmoe_training
 *   i        from 0 on; returns NULL behind the last one, and for a negative one
 *   threads  any */
TMOE_DEF const char *tmoe_setting_name(tmoe_settings of, int i);

/* tmoe_setting_values - what a field may be, for people: "a whole number, 1 to 64"       >>settings
 *   of, name  in
 *   text      (size) out, as tmoe_config_get      errors  as there      threads  any */
TMOE_DEF tmoe_result tmoe_setting_values(tmoe_settings of, const char *name, char *text,
    size_t size);

/* tmoe_training_bytes - memory of a training before any of it is allocated               >>training
 *   config    in, or NULL: default; vocabulary 0: as training says, source_tokens and target_tokens
 *             0: the lengths given here       training  in, or NULL: default
 *   tasks     training tasks, each of examples_per_task + validation_lines lines or more
 *   source_tokens, target_tokens  of the longest input, with its instruction, and output; with
 *             special tokens
 *   memory    out: as tmoe_trainer_bytes for lines of these lengths; shorter ones take less. Not
 *             in it: the context's own (tmoe_ctx_create), the tokenizer, the tokenised texts, and
 *             lists of tasks, lines, tensors and routes
 *   errors    TMOE_ERR_ARGUMENT: no task, an input below 1 token, an output below 2, or one longer
 *             than the config allows. TMOE_ERR_CONFIG: a field of config or training
 *   cost      as if a step had no arithmetic; no weights are allocated */
TMOE_DEF tmoe_result tmoe_training_bytes(tmoe_ctx *ctx, const tmoe_config *config,
    const tmoe_training *training, int tasks, int source_tokens, int target_tokens,
    tmoe_training_memory *memory);

/* tmoe_trainer_create, _destroy - a trainer with the tokenised lines of a suite          >>training
 *   model     in, out: trained in place; outlives the trainer
 *   suite     in: its tasks of TMOE_PART_TRAIN, known to the model by name; not read again
 *   training  in, or NULL: default
 *   errors    TMOE_ERR_CONFIG: a setting is out of its range (the message lists all), or `train`
 *             and alternate_steps leave a turn in which nothing moves.
 *             TMOE_ERR_DATA: no training task or no tokenizer; a text is too long (which task and
 *             line; tmoe_suite_fit gives the lengths that a suite needs)
 *   cost      a pass over the lines; reserves all memory that steps will need */
TMOE_DEF tmoe_trainer *tmoe_trainer_create(tmoe_model *model, const tmoe_suite *suite,
    const tmoe_training *training);
TMOE_DEF void tmoe_trainer_destroy(tmoe_trainer *trainer);

/* tmoe_trainer_model - the model that is trained, not a copy.  threads any */
TMOE_DEF tmoe_model *tmoe_trainer_model(tmoe_trainer *trainer);

/* tmoe_trainer_bytes - memory of model and training; no step or validation takes more
 *   memory  out, or NULL      returns  the total      threads any */
TMOE_DEF size_t tmoe_trainer_bytes(const tmoe_trainer *trainer, tmoe_training_memory *memory);

/* tmoe_trainer_step - one step of the optimiser on the next batch                        >>training
 *   progress  out, or NULL
 *   errors    TMOE_ERR_NUMERIC: the loss or a gradient is not finite; parameters stay as they are
 *   cost      2 flop forward and 4 backward a token and parameter that runs. PARAM: those of one
 *             expert, and the merge (tmoe_mix_parameters). OUTPUT: those of each expert of weight
 *             above 0; STRAIGHT_THROUGH runs all of them forward and one backward. The optimiser
 *             moves all experts; Muon takes about 10 n^3 flop for a matrix of n x n. Steps
 *             beyond training.steps have the learning rate 0. */
TMOE_DEF tmoe_result tmoe_trainer_step(tmoe_trainer *trainer, tmoe_progress *progress);

/* tmoe_trainer_run - steps until training.steps are done or patience ends                >>training
 *   After tmoe_trainer_load it continues from there. The model ends with the parameters, and the
 *   step, which sets its temperature, of the best validation; without validation, of the last step.
 *   errors  as tmoe_trainer_step; TMOE_ERR_CANCELLED: by the callback; the last step's parameters
 *           stay */
TMOE_DEF tmoe_result tmoe_trainer_run(tmoe_trainer *trainer);

/* tmoe_trainer_validation_loss - tmoe_progress.validation_loss, measured now
 *   returns  NaN: no validation lines, or a failure (tmoe_error)    cost  a forward pass */
TMOE_DEF float tmoe_trainer_validation_loss(tmoe_trainer *trainer);

/* tmoe_train - a tokenizer, a model for the suite's training tasks, a trainer that runs   >>onecall
 *   config    in, or NULL: default, which refuses texts of more than 128 and 64 tokens;
 *             source_tokens 0, target_tokens 0: as long as the suite needs
 *   training  in, or NULL: default
 *   errors    as tmoe_tokenizer_train, tmoe_model_create, tmoe_trainer_create, tmoe_trainer_run;
 *             the model is destroyed. To keep the model of a training that it cancels, the
 *             callback saves it first:
 *             tmoe_model_save(tmoe_trainer_model(progress->trainer), path) */
TMOE_DEF tmoe_model *tmoe_train(tmoe_ctx *ctx, const tmoe_suite *suite, const tmoe_config *config,
    const tmoe_training *training);

/* tmoe_train_from - tmoe_train with parameters to begin with                              >>onecall
 *   start     in: layers, tokenizer and lengths are this model's (tmoe_model_derive); NULL: new
 *             ones
 *   router    in: router and task vectors are this model's; NULL: start's, or new ones
 *   config    in, or NULL: start's, without a start the default; must agree with start's as
 *             tmoe_model_derive says
 *   training  in, or NULL: default      errors  as tmoe_train, tmoe_model_derive */
TMOE_DEF tmoe_model *tmoe_train_from(tmoe_ctx *ctx, const tmoe_suite *suite,
    const tmoe_model *start, const tmoe_model *router, const tmoe_config *config,
    const tmoe_training *training);

/* tmoe_train_two_stages - the paper's schedule                                            >>onecall
 *   Stage 1 learns routes: straight-through Gumbel, tau from 2 to 0.1 in a third of its steps.
 *   Stage 2 begins with start's layers again, keeps stage 1's router and vectors, and lets the
 *   routes sharpen: softmax, tau from 300 to 1 in 95 % of its steps.
 *   start, config   in, as tmoe_train_from; selection and temperature are the stages'
 *   stage2  in, or NULL: default; of its `train`, TMOE_TRAIN_MODEL counts
 *   stage1  in, or NULL: as stage2, with all of its `train`
 *   returns stage 2's model      errors  as tmoe_train_from */
TMOE_DEF tmoe_model *tmoe_train_two_stages(tmoe_ctx *ctx, const tmoe_suite *suite,
    const tmoe_model *start, const tmoe_config *config, const tmoe_training *stage1,
    const tmoe_training *stage2);

/* tmoe_suite_tokenizer - tmoe_train's tokenizer: bytes (vocabulary 0), or trained on instructions,
 *   inputs and first outputs of the training tasks                                     >>onecall
 *   errors  as tmoe_tokenizer_train */
TMOE_DEF tmoe_tokenizer *tmoe_suite_tokenizer(tmoe_ctx *ctx, const tmoe_suite *suite,
    int vocabulary);

/* tmoe_suite_fit - sets config's source_tokens and target_tokens to the longest of all tasks'
 *   lines, trained on or not; reads its task_input and specials_in_text                   >>onecall
 *   cost  tokenises all lines */
TMOE_DEF tmoe_result tmoe_suite_fit(tmoe_ctx *ctx, const tmoe_suite *suite,
    const tmoe_tokenizer *tokenizer, tmoe_config *config);

#ifndef TMOE_NO_EVALUATION
typedef enum tmoe_tune {
    TMOE_TUNE_ALL,     /* the dense model that the route merges to, all of it */
    TMOE_TUNE_EXPERTS, /* of that what were experts: layers or FFNs; a dense model's layers */
    TMOE_TUNE_VECTOR   /* the task's vector, from tmoe_vector_unseen; experts and router stay */
} tmoe_tune;

#define TMOE_FEW_SHOT_CHOICES 4

/* How an unseen task is learnt from a few lines. Start from tmoe_few_shot_default(). */
typedef struct tmoe_few_shot {
    tmoe_zero_shot start; /* its first route; a dense model and TUNE_VECTOR ignore it */
    tmoe_tune tune;
    tmoe_optimiser optimiser;   /* Muon's rate is in proportion to those below: see lr_matrices */
    int shots_per_label, shots; /* lines to train on (and as many for dev): a label; in all */
    int steps, evaluate_every_steps; /* dev is measured every so many */
    float warmup;                    /* fraction of the steps */
    /* each rate is tried with each batch size; a task's vector learns at 10 times the rate */
    float learning_rates[TMOE_FEW_SHOT_CHOICES];
    int batch_sizes[TMOE_FEW_SHOT_CHOICES], learning_rate_count, batch_size_count;
    uint64_t seed; /* of the sample */
} tmoe_few_shot;

typedef struct tmoe_few_shot_result {
    double dev, test; /* scores of the pair that was best on dev; NaN: undefined */
    float learning_rate;
    int batch_size, train_count, dev_count;
    int diverged; /* pairs that stopped at a loss that is not finite */
} tmoe_few_shot_result;

/* tmoe_few_shot_default - 200 steps, 3 x 3 choices, 16 lines a label or 32.   threads any */
TMOE_DEF tmoe_few_shot tmoe_few_shot_default(void);
/* tmoe_few_shot_run - adapts to an unseen task and scores its test lines                  >>fewshot
 *   Samples lines, trains with every pair of rate and batch size, takes the one that is best on
 *   dev. The model itself does not change.
 *   task    in: a suite's, with training and test lines; its instruction gives the route
 *   how     in, or NULL: the default
 *   errors  TMOE_ERR_ARGUMENT: a field out of range, no test lines, TMOE_TUNE_VECTOR where
 *           nothing reads vectors. TMOE_ERR_DATA: too few lines, or one too long.
 *           TMOE_ERR_NUMERIC: all diverged
 *   cost    pairs + 1 trainings on the context's threads, each on a context of its own: alloc_fn
 *           must allow calls from several threads
 *   source  CrossFit's protocol: Ye, Lin, Ren 2021 (arXiv 2104.08835) */
TMOE_DEF tmoe_result tmoe_few_shot_run(tmoe_model *model, const tmoe_task *task,
    const tmoe_few_shot *how, tmoe_few_shot_result *result);

/* What a dense model makes of a task's training lines. */
typedef enum tmoe_task_embedding {
    TMOE_EMBED_STATE, /* mean of the encoder's output over the tokens of the inputs */
    /* sum of (dl/dp)^2 for p in norms and biases, scaled to length 1: the diagonal of the empirical
     * Fisher information (Vu 2020, arXiv 2005.00770), then its principal components over tasks */
    TMOE_EMBED_FISHER
} tmoe_task_embedding;

/* tmoe_task_vectors - a vector for each task of a suite, for TMOE_VECTOR_GIVEN            >>fewshot
 *   model         in: dense, with a tokenizer
 *   lines         at least 1: training lines of each task that are read, at most
 *   vector_width  the model's width for states; any for Fisher information, whose columns past the
 *                 number of tasks are 0
 *   vectors       (tasks, vector_width) out; their lengths have the root mean square
 *                 sqrt(vector_width)
 *   errors        TMOE_ERR_ARGUMENT: a mixture, no tokenizer, a number out of range. TMOE_ERR_DATA:
 *                 a line is too long
 *   cost          a pass a line, for Fisher information a backward pass too; tasks^3 */
TMOE_DEF tmoe_result tmoe_task_vectors(tmoe_model *model, const tmoe_suite *suite,
    tmoe_task_embedding how, int lines, int vector_width, float *vectors);
#endif

/* ---- API: answers and evaluation (>>inference) ---- */
/* tmoe_answer - one answer of a known task, decoded as tmoe_model_generation() says     >>inference
 *   task_name  in: of one of the model's tasks
 *   text       (size) out, with a NUL; "" after a failure. UTF-8, but a model whose tokens are
 *              bytes can break a character that it has not learned
 *   errors     TMOE_ERR_ARGUMENT: no such task (the message has the nearest ones), no tokenizer,
 *              settings out of range, text too small, a NULL. TMOE_ERR_DATA: the input has more
 *              tokens than config.source_tokens
 *   cost       an encoder pass, and a decoder pass a token; for another route than the last one
 *              also a merge, experts * parameters of the routed layers */
TMOE_DEF tmoe_result tmoe_answer(tmoe_model *model, const char *task_name, const char *input,
    char *text, size_t size);
/* tmoe_answer_unseen - the same of a task that the model has not seen                   >>inference
 *   instruction  in: gives the route (TMOE_ZERO_SHOT_ROUTER) and the task's vector
 *                (tmoe_vector_unseen); with TMOE_TASK_TEXT it is also read before the input. It is
 *                compared with no task's name. */
TMOE_DEF tmoe_result tmoe_answer_unseen(tmoe_model *model, const char *instruction,
    const char *input, char *text, size_t size);
/* tmoe_answer_many, _unseen - answers to many inputs, to each what it gets alone, up to the
 *   rounding of logits: products of up to 8 rows sum in an order of their own           >>inference
 *   route    in, or NULL: as above. The task must be known even with a route.
 *   answers  (count >= 0) out, of the inputs in their order, up to tmoe_answers_free; all NULL
 *            after a failure
 *   errors   as tmoe_answer
 *   cost     as tmoe_answer, but 32 inputs are decoded at once and share the reading of weights */
TMOE_DEF tmoe_result tmoe_answer_many(tmoe_model *model, const char *task_name, const float *route,
    const char *const *inputs, int count, char **answers);
TMOE_DEF tmoe_result tmoe_answer_many_unseen(tmoe_model *model, const char *instruction,
    const float *route, const char *const *inputs, int count, char **answers);
/* tmoe_answer_best - the likeliest answers to one input, by beam search                 >>inference
 *   task_name, instruction  in: one of them, the other NULL, as tmoe_answer or tmoe_answer_unseen
 *   route             in, or NULL: as above
 *   wanted            1 to 1,024. The search keeps so many beams, or as many as the model's
 *                     generation has, if that is more; the best answers that it finds need not be
 *                     the best that there are
 *   answers           (wanted) out, the likeliest first, up to tmoe_answers_free; all NULL after
 *                     a failure
 *   log_likelihoods   (wanted) out: as tmoe_score_answers, but forced tokens count 0
 *   errors, cost      as tmoe_answer, times the beams */
TMOE_DEF tmoe_result tmoe_answer_best(tmoe_model *model, const char *task_name,
    const char *instruction, const float *route, const char *input, int wanted, char **answers,
    float *log_likelihoods);
/* tmoe_score_answers - how likely given answers to one input are                        >>inference
 *   task_name, instruction, route  in: as tmoe_answer_best
 *   answers           (count >= 0) in
 *   log_likelihoods   (count) out: log p(answer | input), the sum over its tokens and the end
 *                     token, at the most 0. exp of it is its probability; divided by the sum of
 *                     those of a closed set, its probability in that set
 *   errors            as tmoe_answer; TMOE_ERR_DATA: an answer has more than target_tokens
 *   cost              an encoder and a decoder pass an answer */
TMOE_DEF tmoe_result tmoe_score_answers(tmoe_model *model, const char *task_name,
    const char *instruction, const float *route, const char *input, const char *const *answers,
    int count, float *log_likelihoods);
/* tmoe_answers_free - frees the answers and sets them to NULL */
TMOE_DEF void tmoe_answers_free(tmoe_model *model, char **answers, int count);

/* Requests of one task, as token ids. */
typedef struct tmoe_request {
    int task; /* index of a known task; ignored where route and vector are given or not needed */
    const float *route;         /* or NULL: the task's */
    const float *vector;        /* (vector_width) for TMOE_TASK_VECTOR; or NULL: the task's */
    const int *ids;             /* the requests' tokens, one request behind the other */
    const int *lengths;         /* (count): tokens of each, 1 to config.source_tokens */
    int count;                  /* at least 0 */
    const tmoe_generation *how; /* or NULL: tmoe_model_generation()'s */
} tmoe_request;

/* Where the answers go, the best of a request first. max_length and returned are those of
 * request.how, but max_length is at most config.target_tokens + 1, as it is for 0. */
typedef struct tmoe_generated {
    int *tokens;       /* (count, returned, max_length): start token first, padded with pad_id */
    int *token_counts; /* (count, returned): tokens without the padding */
    float *scores;     /* (count, returned): sum of log p / length^penalty; greedy: 0. Or NULL */
} tmoe_generated;

/* tmoe_generate - tokens that answer tokens                                             >>inference
 *   out      its arrays are the caller's, and undefined after a failure. Where beam search found
 *            fewer than `returned` answers, the rest are the start token, with the score -1e9
 *   errors   TMOE_ERR_ARGUMENT: no known task, and a route or vector that is needed is NULL; a
 *            length, an id or settings out of range
 *   cost     as tmoe_answer_many, times beams
 *   memory   keys and values of max(32, beams) rows; for more than 8 rows also packed weights of
 *            the decoder, until it returns
 *   source   the beam search of transformers, token by token */
TMOE_DEF tmoe_result tmoe_generate(tmoe_model *model, const tmoe_request *request,
    const tmoe_generated *out);

/* What is compared: log p of a label, the sum or the mean over its tokens. */
typedef enum tmoe_label_score { TMOE_LABEL_SUM, TMOE_LABEL_MEAN } tmoe_label_score;

/* tmoe_choose_label - the most likely label of each input, for a task with a closed set >>inference
 *   task    in: a suite's, with labels; if the model knows no task of its name, it is asked by its
 *           instruction, as tmoe_answer_unseen does
 *   route   in, or NULL: the task's
 *   inputs  (count >= 0) in
 *   chosen  (count) out: indices of labels; undefined after a failure
 *   errors  TMOE_ERR_ARGUMENT: no labels, or an empty one, no tokenizer, count or score out of
 *           range. TMOE_ERR_DATA: an input or a label is too long
 *   cost    an encoder and a decoder pass for each input and label */
TMOE_DEF tmoe_result tmoe_choose_label(tmoe_model *model, const tmoe_task *task, const float *route,
    const char *const *inputs, int count, tmoe_label_score how, int *chosen);
#ifndef TMOE_NO_EVALUATION
/* tmoe_evaluate - score of the model on a task's test lines, by the task's metric         >>metrics
 *   task, route  in: as in tmoe_choose_label, but with test lines in place of labels
 *   limit        test lines that are used, from the first; 0: all
 *   score        out; NaN where the metric is undefined (see tmoe_score)
 *   errors       as tmoe_answer; TMOE_ERR_ARGUMENT: no test lines, limit below 0
 *   cost         as tmoe_answer_many and tmoe_score */
TMOE_DEF tmoe_result tmoe_evaluate(tmoe_model *model, const tmoe_task *task, const float *route,
    int limit, double *score);
#endif
/* ---- API: files (>>suite, >>files, >>bart); none with TMOE_NO_STDIO ---- */
#ifndef TMOE_NO_STDIO
/* tmoe_suite_load - reads a folder of tasks                                                 >>suite
 *   folder  in: holds tasks in one or more of three layouts:
 *             NAME.tsv here or in tasks/: lines "input TAB output [TAB another output ...]"
 *             TASK/TASK_{k}_{seed}_{train,dev,test}.tsv: CrossFit's. The first sample (k and seed)
 *               is read; white space around a line is ignored, and so is a line without an output
 *             *.jsonl: lines {"task", "input", "output": a string or a list, "instruction" or not}
 *           The last fifth of a task's lines is for test; in CrossFit's layout, the test file is.
 *           tasks.tsv, if it is there, describes the tasks. Its first line names its columns: name,
 *             and any of category ("none"), metric (exact_match), instruction (the name with spaces
 *             for '_') and labels ("a|b|c": the closed set of answers). Other rows are ignored
 *   split   in: NAME of FOLDER/splits/NAME.json, or the path of such a file, {"train": [names],
 *             "dev": [names], "test": [names]}: other tasks are left out.
 *           NULL: splits/zero_shot.json if it is there, else all tasks are for training
 *   errors  TMOE_ERR_FILE; TMOE_ERR_FORMAT (JSON); TMOE_ERR_DATA: a text is empty or not UTF-8,
 *           an unknown metric, label or name ... The message begins with file:line
 *   cost    a pass over the files; a byte-order mark before a text and CR before LF are ignored */
TMOE_DEF tmoe_suite *tmoe_suite_load(tmoe_ctx *ctx, const char *folder, const char *split);
/* tmoe_model_save - writes a model to one safetensors file                                  >>files
 *   The file holds config, tokenizer, tasks, generation, parameters and the number of steps done,
 *   which sets the temperature; not which experts are disabled.
 *   path    in: a temporary file beside it is written, flushed to the disk and renamed to it: an
 *           older file stays whole until then. Only a file is ever replaced
 *   errors  TMOE_ERR_FILE; TMOE_ERR_DATA: tmoe_model_load could not read it, because a field of the
 *           generation is out of its range or a task's text is not UTF-8
 *   cost    a pass over the parameters */
TMOE_DEF tmoe_result tmoe_model_save(const tmoe_model *model, const char *path);
/* tmoe_model_load - reads what tmoe_model_save or tmoe_trainer_save wrote, 0.1's as well    >>files
 *   path    in: the parameters are used as they lie in the file, mapped, where the system can. Only
 *           pages that are used are read, and training writes to copies. Do not change or truncate
 *           the file while the model is in use; to save over it is safe
 *   errors  TMOE_ERR_FILE; TMOE_ERR_FORMAT: cut off, edited or of another kind, and where;
 *           TMOE_ERR_CONFIG */
TMOE_DEF tmoe_model *tmoe_model_load(tmoe_ctx *ctx, const char *path);

/* What a file of tmoe_model_save or tmoe_trainer_save holds. */
typedef struct tmoe_description {
    tmoe_config config;
    int task_count;
    int64_t step;                         /* optimiser steps that the model has taken */
    size_t parameters, active_parameters; /* as tmoe_model_parameters */
    size_t file_bytes;
    int is_checkpoint;             /* 1: of tmoe_trainer_save; else training is the default */
    tmoe_training training;        /* without its pointers. Files before 0.4 do not say its steps,
                             * evaluate_every_steps and patience, those of 0.1 nothing */
    int64_t steps_done, best_step; /* of the training; of its best validation */
    float best_validation_loss;    /* NaN: never measured */
} tmoe_description;

/* tmoe_describe - what a file holds, without reading its parameters                         >>files
 *   description  out
 *   errors       TMOE_ERR_FILE, TMOE_ERR_FORMAT as tmoe_model_load; that every tensor is there is
 *                not checked
 *   cost         a pass over the head of the file, with its tokenizer and tasks */
TMOE_DEF tmoe_result tmoe_describe(tmoe_ctx *ctx, const char *path, tmoe_description *description);
/* tmoe_trainer_save - writes a checkpoint: the model, as tmoe_model_save, and its training  >>files
 *   The training is the moments, the best parameters in validation, the steps done, the settings
 *   and a hash of the tokenised lines. The file is up to four times that of the model. */
TMOE_DEF tmoe_result tmoe_trainer_save(const tmoe_trainer *trainer, const char *path);
/* tmoe_trainer_load - continues a training where tmoe_trainer_save left it                  >>files
 *   All further bits are those of a training that never stopped, on any number of threads.
 *   trainer  in, out: of the same config, tasks, tokenizer, lines, and settings but for
 *              steps, if not below those done   with more, the rates of steps to come are those of
 *                                               the longer schedule: they rise here
 *              evaluate_every_steps, patience   they decide what is kept as best and when to stop
 *              label, progress, progress_user   and the pointers of all_reduce; machines must agree
 *   path     in: a checkpoint of version 0.1 has no settings and no hash. It is accepted; whether
 *            they agree only the caller knows. One of 0.1 or 0.2 is of AdamW, and goes on with
 *            other batches than it would have had
 *   errors   as tmoe_model_load; TMOE_ERR_FORMAT: a model's file, not a trainer's; TMOE_ERR_CONFIG
 *            names each setting that differs with both values, and whether config, tasks, tokenizer
 *            or lines do
 *   cost     a pass over the file and the tokens */
TMOE_DEF tmoe_result tmoe_trainer_load(tmoe_trainer *trainer, const char *path);
/* tmoe_npy_load - a matrix that numpy.save wrote, as task vectors for instance       >>safetensors
 *   The file has format 1.0 to 3.0 and holds little-endian float32 or float64 in C order.
 *   x         (rows, cols) out
 *   errors    TMOE_ERR_ARGUMENT: a NULL, rows or cols below 1; TMOE_ERR_FILE; TMOE_ERR_FORMAT:
 *             another shape, type or order */
TMOE_DEF tmoe_result tmoe_npy_load(tmoe_ctx *ctx, const char *path, float *x, int rows, int cols);
/* tmoe_tokenizer_load - reads a byte-level BPE of Hugging Face's (RoBERTa, BART)       >>tokenizer
 *   folder    in: tokenizer.json, or vocab.json and merges.txt. Whether a text is encoded with a
 *             space before it (add_prefix_space) is read from tokenizer_config.json, or else from
 *             tokenizer.json.
 *   errors    TMOE_ERR_FILE; TMOE_ERR_FORMAT, with the place: no byte-level BPE, no <s>, <pad> or
 *             </s>, a setting that changes ids and is not supported */
TMOE_DEF tmoe_tokenizer *tmoe_tokenizer_load(tmoe_ctx *ctx, const char *folder);
#ifndef TMOE_NO_BART
/* tmoe_bart_load - reads a BART in Hugging Face's form (Lewis 2020, arXiv 1910.13461)        >>bart
 *   folder   in: config.json; model.safetensors, or several with model.safetensors.index.json (F32,
 *            F16 or BF16); generation_config.json and a tokenizer (tmoe_tokenizer_load), if present
 *   returns  a dense model, of which tmoe_model_derive makes a mixture; without a tokenizer for
 *            tmoe_generate only
 *   errors   TMOE_ERR_FILE; TMOE_ERR_FORMAT: a setting that BART never had or that would change
 *            the text and is not supported; all tensors that are missing, unknown (but those that
 *            transformers ignores) or of another shape, in one message
 *   cost     a copy of the weights (q, k and v become one matrix) */
TMOE_DEF tmoe_model *tmoe_bart_load(tmoe_ctx *ctx, const char *folder);
/* tmoe_export_dense - writes one task of a mixture as a dense BART in Hugging Face's form   >>bart
 *   BartForConditionalGeneration.from_pretrained loads it; tmoe_bart_load reads it back bit by bit.
 *   model      in, out (its routes): of TMOE_NORM_POST, TMOE_POSITION_LEARNED, source_tokens =
 *              target_tokens
 *   task_name  in: a known task; ignored if no layer reads its vector (TMOE_TASK_VECTOR, which
 *              becomes a part of the positions), and there is a route or are no experts. Of an
 *              unseen task tmoe_model_derive first makes a dense model
 *   route      in: of tmoe_route_unseen for instance; NULL: the task's
 *   folder     in: is made unless it is there; files of the same names are replaced
 *   errors     TMOE_ERR_ARGUMENT: no such task, other norms, positions or lengths, a route that
 *              mixes outputs of several experts, which no dense model computes; TMOE_ERR_DATA: an
 *              unsound generation; TMOE_ERR_FILE
 *   cost       a merge, and a pass over the parameters */
TMOE_DEF tmoe_result tmoe_export_dense(tmoe_model *model, const char *task_name, const float *route,
    const char *folder);
#endif
#endif
#ifdef __cplusplus
}
#endif
#endif /* TASKMOE_H_INCLUDED: the API ends here */
#if defined(TASKMOE_IMPLEMENTATION) \
    && (!defined(TASKMOE_IMPLEMENTATION_ONCE) || defined(TMOEI_PASS))
#ifndef TMOEI_PASS
#define TASKMOE_IMPLEMENTATION_ONCE
/* Names of the implementation that a program may have as macros; these come back at its end. */
#pragma push_macro("A")
#undef A
#pragma push_macro("B")
#undef B
#pragma push_macro("C")
#undef C
#pragma push_macro("D")
#undef D
#pragma push_macro("E")
#undef E
#pragma push_macro("F")
#undef F
#pragma push_macro("G")
#undef G
#pragma push_macro("K")
#undef K
#pragma push_macro("L")
#undef L
#pragma push_macro("M")
#undef M
#pragma push_macro("N")
#undef N
#pragma push_macro("P")
#undef P
#pragma push_macro("Q")
#undef Q
#pragma push_macro("R")
#undef R
#pragma push_macro("S")
#undef S
#pragma push_macro("T")
#undef T
#pragma push_macro("U")
#undef U
#pragma push_macro("V")
#undef V
#pragma push_macro("W")
#undef W
#pragma push_macro("X")
#undef X
#pragma push_macro("Y")
#undef Y
#pragma push_macro("max")
#undef max
#pragma push_macro("slots")
#undef slots
#ifdef __cplusplus
extern "C" {
#endif
/* #################################################################################################
 * BOOK I: THE ENGINE
 *
 * Matrices, gradients, the processor's registers, caches and threads. Nothing in this book knows
 * what a task is. It offers the method:
 *   errors       a call keeps the first cause of its failure, in words (>>errors)
 *   memory       every byte is counted, blocks that belong together are freed together (>>memory)
 *   random       numbers that are functions of (seed, stream, counter): no state to save (>>random)
 *   lanes        tmoei_parallel and tmoei_sweep split work so that any number of threads gives the
 *                same bits (>>parallel, >>sweeps)
 *   products     tmoei_gemm, at the speed of the processor's vector units (>>kernels, >>products)
 *   polar        every singular value of a matrix made about 1, in one lane (>>polar)
 *   a tape       values forward, gradients backward, a step's memory known beforehand (>>tape)
 *   operations   15, each with its shape rule, forward and backward pass side by side (>>ops);
 *                three more are in >>mix
 * ############################################################################################## */

/* ==== >>platform: what the compiler and the machine give ====================================== */

#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__FAST_MATH__) && !defined(TMOE_ALLOW_FAST_MATH)
#error "taskmoe.h: -ffast-math breaks NaN checks and equal bits; TMOE_ALLOW_FAST_MATH accepts that"
#endif
#if !defined(TMOE_MALLOC) && !defined(TMOE_FREE)
#define TMOE_MALLOC(size) malloc(size)
#define TMOE_FREE(ptr) free(ptr)
#elif !defined(TMOE_MALLOC) || !defined(TMOE_FREE)
#error "taskmoe.h: define both or neither of TMOE_MALLOC(size) and TMOE_FREE(ptr)"
#endif
#if defined(_WIN32)
#include <direct.h>
#include <io.h>
#elif defined(__unix__) || defined(__APPLE__)
#define TMOEI_POSIX 1
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>
#endif
/* With -std=c99, glibc declares these three only if a feature macro was defined before the first
 * system header. The program may have included that header already, so they are declared here. */
#if defined(__linux__)
#ifndef MADV_HUGEPAGE
#define MADV_HUGEPAGE 14
#endif
#if !defined(__cplusplus) && !defined(__USE_MISC)
extern int madvise(void *address, size_t bytes, int advice), fileno(FILE *file), fsync(int file);
#endif
#endif
#if defined(__GNUC__) || defined(__clang__)
#define TMOEI_PRINTF(format_at, arguments_at) \
    __attribute__((format(printf, format_at, arguments_at)))
#define TMOEI_PREFETCH(p) __builtin_prefetch(p)
#define TMOEI_PREFETCH_L2(p) __builtin_prefetch(p, 0, 2)
#else
#define TMOEI_PRINTF(format_at, arguments_at)
#define TMOEI_PREFETCH(p) (void)0
#define TMOEI_PREFETCH_L2(p) (void)0
#endif
#define TMOEI_ALIGN 64u           /* bytes: one cache line, one AVX-512 register */
#define TMOEI_MESSAGE_BYTES 32768 /* room for the names of all tensors of a large BART */
#define TMOEI_PROBLEM_BYTES (TMOEI_MESSAGE_BYTES - 64) /* of a list that a message quotes */
#define TMOEI_LANES_MAX 64

static int tmoei_least(int a, int b)
{
    return a < b ? a : b;
}

static size_t tmoei_least_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ==== >>errors: the first cause is kept, with the values and the rule that was broken ========= */

struct tmoe_ctx {
    tmoe_ctx_config config;
    tmoe_result error;
    char message[TMOEI_MESSAGE_BYTES];
    size_t bytes_now, bytes_peak;         /* allocated now, and the most so far */
    const struct tmoei_kernels *kernels;  /* >>kernels: function table of one instruction set */
    struct tmoei_pool *pool;              /* >>parallel */
    int lanes;                            /* that work is split over, at least 1 */
    int tile_rows, block_columns;         /* >>products: sizes that fit the caches */
    float *lane_scratch[TMOEI_LANES_MAX]; /* packing buffers, one for each lane */
    float *shared_scratch;                /* packing buffer that the lanes fill together */
    int keeping; /* >>products: weights of products of few rows are kept packed */
    struct tmoei_kept *kept;
    tmoe_own_router router; /* logits NULL: none */
};

/* Stores the code and message of the first failure, and returns the code. Later failures follow
 * from the first, so they are ignored. */
static TMOEI_PRINTF(3, 4) tmoe_result
    tmoei_fail(tmoe_ctx *ctx, tmoe_result code, const char *format, ...)
{
    if (ctx->error == TMOE_OK) {
        va_list arguments;
        ctx->error = code;
        va_start(arguments, format);
        (void)vsnprintf(ctx->message, sizeof ctx->message, format, arguments);
        va_end(arguments);
    }
    return code;
}

/* The first statement of every public function that can fail, except the tape's operations: they
 * return NULL after a failure, so that its cause is kept until the tape is reset. */
static void tmoei_begin(tmoe_ctx *ctx)
{
    ctx->error = TMOE_OK;
}

/* tmoei_fail in a function that returns a pointer: return TMOEI_FAIL_NULL(...). */
#ifdef __cplusplus
#define TMOEI_FAIL_NULL(...) ((void)tmoei_fail(__VA_ARGS__), nullptr)
#else
#define TMOEI_FAIL_NULL(...) ((void)tmoei_fail(__VA_ARGS__), NULL)
#endif
#define TMOEI_TRY(call) \
    do { \
        const tmoe_result tried = (call); \
        if (tried != TMOE_OK) return tried; \
    } while (0)

/* Appends one problem to `text`, which becomes one message about all of them. A text that is full
 * ends in "...". */
static TMOEI_PRINTF(3, 4) void tmoei_problem(char *text, size_t size, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    if (used && used + 2 < size) {
        memcpy(text + used, "; ", 3);
        used += 2;
    }
    va_start(arguments, format);
    const int n = vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= size - used) memcpy(text + size - 4, "...", 4);
}

/* ==== >>memory: every byte comes through here; sizes are checked before they are multiplied === */

/* *out = a * b + c; returns 0 if that overflows. */
static int tmoei_size(size_t *out, size_t a, size_t b, size_t c)
{
    if (b != 0 && a > ((size_t)-1 - c) / b) return 0;
    *out = a * b + c;
    return 1;
}

/* Asks for 2 MiB pages: one thread reads memory 28 % faster (Zen 4). */
static void tmoei_huge_pages(void *raw, size_t bytes)
{
    (void)raw;
    (void)bytes;
#if defined(__linux__)
    const size_t page = (size_t)2 << 20;
    const uintptr_t first = ((uintptr_t)raw + page - 1) & ~(uintptr_t)(page - 1);
    const uintptr_t end = ((uintptr_t)raw + bytes) & ~(uintptr_t)(page - 1);
    if (end > first + page) (void)madvise((void *)first, (size_t)(end - first), MADV_HUGEPAGE);
#endif
}

/* The 64 bytes before every block. */
typedef struct tmoei_block {
    size_t bytes;  /* requested from the system */
    size_t offset; /* of the block in them */
    void *before;  /* the block that its owner allocated before this one */
} tmoei_block;

static tmoei_block *tmoei_head_of(void *block)
{
    return (tmoei_block *)(void *)((char *)block - TMOEI_ALIGN);
}

/* 64-byte aligned, zeroed if `zero`; NULL and TMOE_ERR_MEMORY where the allocator refuses. */
static void *tmoei_alloc(tmoe_ctx *ctx, size_t count, size_t element_bytes, int zero)
{
    size_t bytes;
    if (!tmoei_size(&bytes, count, element_bytes, 2u * TMOEI_ALIGN))
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_MEMORY,
            "memory: %lu x %lu bytes is more than an address can hold", (unsigned long)count,
            (unsigned long)element_bytes);
    char *raw;
    if (ctx->config.alloc_fn)
        raw = (char *)ctx->config.alloc_fn(bytes, ctx->config.alloc_user);
    else
        raw = (char *)TMOE_MALLOC(bytes);
    if (!raw)
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_MEMORY, "memory: %lu bytes were refused (%lu in use)",
            (unsigned long)bytes, (unsigned long)ctx->bytes_now);

    char *block = raw + TMOEI_ALIGN + (TMOEI_ALIGN - (size_t)((uintptr_t)raw % TMOEI_ALIGN));
    tmoei_head_of(block)->bytes = bytes;
    tmoei_head_of(block)->offset = (size_t)(block - raw);
    ctx->bytes_now += bytes;
    if (ctx->bytes_now > ctx->bytes_peak) ctx->bytes_peak = ctx->bytes_now;
    tmoei_huge_pages(raw, bytes);
    if (zero) memset(block, 0, count * element_bytes);
    return block;
}

static void tmoei_free(tmoe_ctx *ctx, void *block)
{
    if (!block) return;
    const size_t bytes = tmoei_head_of(block)->bytes;
    char *raw = (char *)block - tmoei_head_of(block)->offset;
    ctx->bytes_now -= bytes;
    if (ctx->config.free_fn)
        ctx->config.free_fn(raw, bytes, ctx->config.alloc_user);
    else
        TMOE_FREE(raw);
}

/* Makes the block that *slot points to (NULL: none yet) hold at least `need` elements, with its
 * contents kept. `slot` is the address of a pointer of any type. The capacity doubles, so n
 * additions copy O(n) elements. Returns 0 on failure; the old block is then unchanged. */
static int tmoei_grow(tmoe_ctx *ctx, void *slot, size_t *capacity, size_t need,
    size_t element_bytes)
{
    size_t wanted = *capacity < 8 ? 8 : *capacity;
    void *block, *bigger;
    memcpy(&block, slot, sizeof block);
    if (block && need <= *capacity) return 1;
    while (wanted < need) wanted = wanted > ((size_t)-1) / 2 ? need : wanted * 2;
    if (!(bigger = tmoei_alloc(ctx, wanted, element_bytes, 0))) return 0;
    if (block) memcpy(bigger, block, *capacity * element_bytes);
    tmoei_free(ctx, block);
    *capacity = wanted;
    memcpy(slot, &bigger, sizeof bigger);
    return 1;
}

/* Blocks that are freed together; their heads link each to the one allocated before it. */
typedef struct tmoei_owner {
    tmoe_ctx *ctx;
    void *last;
} tmoei_owner;

static void *tmoei_own_block(tmoei_owner *owner, size_t count, size_t element_bytes, int zero)
{
    void *block = tmoei_alloc(owner->ctx, count, element_bytes, zero);
    if (block) {
        tmoei_head_of(block)->before = owner->last;
        owner->last = block;
    }
    return block;
}

static void *tmoei_own(tmoei_owner *owner, size_t count, size_t element_bytes)
{
    return tmoei_own_block(owner, count, element_bytes, 1);
}

/* `count` zeroed elements. */
#define TMOEI_OWN(owner, type, count) ((type *)tmoei_own(owner, (size_t)(count), sizeof(type)))

static char *tmoei_own_text(tmoei_owner *owner, const char *text, size_t length)
{
    char *copy = (char *)tmoei_own(owner, length + 1, 1);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}

static void tmoei_owner_free(tmoei_owner *owner)
{
    while (owner->last) {
        void *block = owner->last;
        owner->last = tmoei_head_of(block)->before;
        tmoei_free(owner->ctx, block);
    }
}

/* ==== >>bytes: UTF-8, buffers that grow, whole files ========================================== */

/* Bytes of the UTF-8 character at text[at], which goes to *code; 0 where it is not valid. */
static size_t tmoei_utf8_next(const char *text, size_t length, size_t at, uint32_t *code)
{
    static const uint32_t least[5] = { 0, 0, 0x80, 0x800, 0x10000 }; /* code of so many bytes */
    const unsigned char *s = (const unsigned char *)text + at;
    if (at >= length) return 0;
    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    const size_t n = 2 + (size_t)(s[0] >= 0xe0) + (size_t)(s[0] >= 0xf0);
    if (s[0] < 0xc2 || s[0] > 0xf4 || length - at < n) return 0;

    uint32_t c = s[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0;
        c = c << 6 | (s[i] & 0x3fu);
    }
    *code = c;
    const int surrogate = c >= 0xd800 && c <= 0xdfff;
    return c < least[n] || c > 0x10ffff || surrogate ? 0 : n;
}

#if !defined(TMOE_NO_STDIO) || !defined(TMOE_NO_EVALUATION)
/* Writes a character as UTF-8 and returns its bytes. */
static size_t tmoei_utf8_put(uint32_t c, char *out)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    const size_t n = 2 + (size_t)(c >= 0x800) + (size_t)(c >= 0x10000);
    for (size_t i = n - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (c & 63));
        c >>= 6;
    }
    out[0] = (char)((0xf00u >> n & 0xffu) | c); /* as many leading ones as there are bytes */
    return n;
}
#endif

/* Bytes of a text up to the first that is not valid UTF-8, or is NUL; all of them if none is. */
static size_t tmoei_utf8_sound(const char *text, size_t length)
{
    size_t at = 0;
    while (at < length) {
        uint32_t code = 0;
        const size_t bytes = tmoei_utf8_next(text, length, at, &code);
        if (bytes == 0 || code == 0) break;
        at += bytes;
    }
    return at;
}

/* Unicode's White_Space. */
static int tmoei_is_white_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xa0 || c == 0x1680
        || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f
        || c == 0x3000;
}

/* A text without the white space at both ends. */
static const char *tmoei_strip(const char *text, size_t *length)
{
    size_t from = 0, to = 0, at = 0;
    while (at < *length) {
        uint32_t code = 0;
        size_t bytes = tmoei_utf8_next(text, *length, at, &code);
        if (bytes == 0) bytes = 1; /* not UTF-8: no space */
        at += bytes;
        if (!tmoei_is_white_space(code))
            to = at;
        else if (to == 0)
            from = at;
    }
    *length = to > from ? to - from : 0;
    return text + from;
}

/* ---- buffer ---- */

/* data[length] is 0. After a failed allocation additions are ignored. */
typedef struct tmoei_buffer {
    char *data;
    size_t length, capacity;
    int failed;
} tmoei_buffer;

static void tmoei_buffer_add(tmoe_ctx *ctx, tmoei_buffer *b, const char *bytes, size_t n)
{
    b->failed = b->failed || !tmoei_grow(ctx, &b->data, &b->capacity, b->length + n + 1, 1);
    if (b->failed) return;
    if (n) memcpy(b->data + b->length, bytes, n);
    b->length += n;
    b->data[b->length] = 0;
}

static void tmoei_buffer_free(tmoe_ctx *ctx, tmoei_buffer *buffer)
{
    tmoei_free(ctx, buffer->data);
    memset(buffer, 0, sizeof *buffer);
}

/* ASCII letters and digits, and all bytes outside ASCII. */
static int tmoei_is_word_byte(unsigned char c)
{
    return c >= 128 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static unsigned char tmoei_lower(unsigned char c)
{
    return (unsigned char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
}

#ifndef TMOE_NO_STDIO

#define TMOEI_DATA_FILE_MAX ((size_t)1 << 30)
#define TMOEI_PATH 1024

/* ---- whole files ---- */

/* The file's bytes with a 0 behind them; NULL if it cannot be read or is above the limit. */
static char *tmoei_read_file(tmoe_ctx *ctx, const char *path, size_t limit_bytes, size_t *length)
{
    tmoei_buffer buffer = { NULL, 0, 0, 0 };
    char block[16384];
    size_t n = 0;
    *length = 0;
    errno = 0;
    FILE *file = fopen(path, "rb");
    if (!file)
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_FILE, "%s: cannot be opened: %s", path,
            strerror(errno));
    do {
        tmoei_buffer_add(ctx, &buffer, block, n);
        n = fread(block, 1, sizeof block, file);
    } while (n > 0 && !buffer.failed && buffer.length + n <= limit_bytes);

    if (ferror(file))
        (void)tmoei_fail(ctx, TMOE_ERR_FILE, "%s: cannot be read: %s", path, strerror(errno));
    else if (n > 0)
        (void)tmoei_fail(ctx, TMOE_ERR_FILE, "%s: larger than %lu bytes", path,
            (unsigned long)limit_bytes);
    (void)fclose(file);
    if (ctx->error != TMOE_OK) tmoei_buffer_free(ctx, &buffer);
    *length = buffer.length;
    return buffer.data;
}

static void tmoei_unmap(char *bytes, size_t size)
{
#ifdef TMOEI_POSIX
    (void)munmap(bytes, size);
#else
    (void)bytes;
    (void)size;
#endif
}

/* The file, mapped where the system can: a page is read when it is used, and writing to it does not
 * change the file. Else it is read. */
static char *tmoei_map_file(tmoe_ctx *ctx, const char *path, size_t *size, int *mapped)
{
    *mapped = 0;
#ifdef TMOEI_POSIX
    const int file = open(path, O_RDONLY);
    struct stat about;
    void *bytes = MAP_FAILED;
    if (file >= 0 && fstat(file, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0) {
        *size = (size_t)about.st_size;
        bytes = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    }
    if (file >= 0) (void)close(file);
    *mapped = bytes != MAP_FAILED;
    if (*mapped) return (char *)bytes;
#endif
    return tmoei_read_file(ctx, path, (size_t)-1 / 4, size);
}

static tmoe_result tmoei_path_join(tmoe_ctx *ctx, char *path, const char *folder, const char *name)
{
    if (snprintf(path, TMOEI_PATH, "%s/%s", folder, name) < TMOEI_PATH) return TMOE_OK;
    return tmoei_fail(ctx, TMOE_ERR_FILE, "%s/%s: the path is longer than %d bytes", folder, name,
        TMOEI_PATH - 1);
}

static int tmoei_folder_has(tmoe_ctx *ctx, char *path, const char *folder, const char *name)
{
    FILE *file = tmoei_path_join(ctx, path, folder, name) == TMOE_OK ? fopen(path, "rb") : NULL;
    if (file) (void)fclose(file);
    return file != NULL;
}

/* ---- lines ---- */

/* Bytes of the byte-order mark, which editors write before UTF-8. */
static size_t tmoei_byte_order_mark(const char *text, size_t length)
{
    return length >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
}

typedef struct tmoei_lines {
    tmoe_ctx *ctx;
    char *text, where[TMOEI_PATH + 16]; /* "path:line" */
    const char *path, *line;
    size_t length, at, size; /* size: of the line, without LF or CR LF */
    int number;
} tmoei_lines;

static void tmoei_lines_open(tmoe_ctx *ctx, tmoei_lines *lines, const char *path)
{
    memset(lines, 0, sizeof *lines);
    lines->ctx = ctx;
    lines->path = path;
    const char *text = lines->text =
        tmoei_read_file(ctx, path, TMOEI_DATA_FILE_MAX, &lines->length);
    if (text) lines->at = tmoei_byte_order_mark(text, lines->length);
    size_t *end = &lines->length; /* empty lines at the end do not count */
    while (*end > lines->at && (text[*end - 1] == '\n' || text[*end - 1] == '\r')) --*end;
}

/* The next line; at the end, or after an error, frees the text and returns 0. */
static int tmoei_lines_next(tmoei_lines *lines)
{
    if (lines->ctx->error != TMOE_OK || lines->at >= lines->length) {
        tmoei_free(lines->ctx, lines->text);
        return 0;
    }
    lines->line = lines->text + lines->at;
    const char *end = (const char *)memchr(lines->line, '\n', lines->length - lines->at);
    lines->size = end ? (size_t)(end - lines->line) : lines->length - lines->at;
    lines->at += lines->size + 1;
    if (lines->size && lines->line[lines->size - 1] == '\r') lines->size--;
    (void)snprintf(lines->where, sizeof lines->where, "%s:%d", lines->path, ++lines->number);
    return 1;
}

#endif /* TMOE_NO_STDIO */

/* ==== >>random: counter-based, so the state is one seed and nothing ever has to be rewound ==== */

/* The finaliser of SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t tmoei_mix64(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 64 random bits: mix(mix(seed + g (stream + 1)) + g (counter + 1)), g = 2^64 / golden ratio. */
static uint64_t tmoei_random(uint64_t seed, uint64_t stream, uint64_t counter)
{
    const uint64_t golden = UINT64_C(0x9e3779b97f4a7c15);
    return tmoei_mix64(tmoei_mix64(seed + golden * (stream + 1)) + golden * (counter + 1));
}

/* In (0, 1), so log u and log(-log u) are finite. The largest sum would round to 2^24. */
static float tmoei_uniform(uint64_t random)
{
    const float sum = (float)(random >> 40) + 0.5f;
    return (sum < 16777216.0f ? sum : 16777215.0f) * (1.0f / 16777216.0f);
}

/* 0 to n - 1; the bias is at most n / 2^64. */
static size_t tmoei_below(uint64_t random, size_t n)
{
    return (size_t)(random % (uint64_t)n);
}

/* Standard normal: sqrt(-2 log u) cos(2 pi v), u and v uniform (Box and Muller 1958). */
static float tmoei_normal(uint64_t seed, uint64_t stream, uint64_t counter)
{
    const float u = tmoei_uniform(tmoei_random(seed, stream, 2 * counter));
    const float v = tmoei_uniform(tmoei_random(seed, stream, 2 * counter + 1));
    return sqrtf(-2.0f * logf(u)) * cosf(6.28318530718f * v);
}

/* Starts a shuffle (Fisher-Yates): the first min(wanted, n) places of order (n) become different
 * numbers below n. Returns the number; each uses one counter. */
static int tmoei_draw(uint64_t seed, uint64_t stream, uint64_t counter, int *order, int n,
    int wanted)
{
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = 0; i < wanted && i < n; i++) {
        const uint64_t random = tmoei_random(seed, stream, counter + (uint64_t)i);
        const int other = i + (int)tmoei_below(random, (size_t)(n - i));
        const int chosen = order[other];
        order[other] = order[i];
        order[i] = chosen;
    }
    return tmoei_least(wanted, n);
}

/* Deals `wanted` numbers below n to `out`, from place `first` of an endless row of shuffles: each
 * number comes once in every n. order (n) is scratch. A shuffle uses n counters. */
static void tmoei_deal(uint64_t seed, uint64_t stream, uint64_t first, int *order, int n,
    int wanted, int *out)
{
    const uint64_t size = (uint64_t)n;
    for (uint64_t i = 0; i < (uint64_t)wanted; i++) {
        const uint64_t at = first + i;
        if (i == 0 || at % size == 0)
            (void)tmoei_draw(seed, stream, at / size * size, order, n,
                (int)(at % size) + wanted - (int)i);
        out[i] = order[at % size];
    }
}

/* ---- streams ----
 * No two of these meet, even where their seeds are equal:
 *   stream           seed      used for                               counters
 *   tensor's index   model     initial values                         2 an element
 *   TASK_ROUTES      model     routes of RANDOM_TASK                  64 a task and layer
 *   GROUP_ROUTES     model     routes of RANDOM_EXAMPLE               64 a line and layer
 *   GUMBEL           training  noise on the router's logits           1 a logit
 *   EXPLORE          training  routes instead of the router's         2 a task and layer
 *   ROUTER_DROPOUT   training  masks of what the router reads         1 a step
 *   TASKS            training  tasks of the steps, in epochs          1 a task of an epoch
 *   LINES | task     training  lines of a task, in epochs             1 a line of an epoch
 *   FEW_SHOT         few-shot  order of a task's lines                1 a line
 *   ACCEPTED         training  accepted outputs of a step's groups    2^17 a step
 *   DROPOUT | ...    training  masks, a stream for each step's group  1 a mask
 *   PERMUTATION | i  the call  tmoe_route_correlations, draw i        1 a task
 *   RESAMPLE | i     the call  tmoe_compare, draw i                   1 a task */
#define TMOEI_TENSORS_MAX 1000000
#define TMOEI_EXPERTS_MAX 64
#define TMOEI_GROUPS_MAX 120    /* tasks of a step */
#define TMOEI_EXAMPLES_MAX 1024 /* lines of a task in a step */

enum {
    TMOEI_STREAM_TASK_ROUTES = TMOEI_TENSORS_MAX + 1,
    TMOEI_STREAM_GROUP_ROUTES,
    TMOEI_STREAM_GUMBEL,
    TMOEI_STREAM_EXPLORE,
    TMOEI_STREAM_ROUTER_DROPOUT,
    TMOEI_STREAM_TASKS,
    TMOEI_STREAM_FEW_SHOT,
    TMOEI_STREAM_ACCEPTED
};

/* Families of 2^56 streams each. */
#define TMOEI_STREAM_DROPOUT (UINT64_C(1) << 56)
#define TMOEI_STREAM_PERMUTATION (UINT64_C(2) << 56)
#define TMOEI_STREAM_RESAMPLE (UINT64_C(3) << 56)
#define TMOEI_STREAM_LINES (UINT64_C(4) << 56)

/* Groups of a step: tasks, or lines where each has a route of its own. */
enum { TMOEI_GROUP_BITS = 17 };

typedef char tmoei_groups_fit[TMOEI_GROUPS_MAX * TMOEI_EXAMPLES_MAX >> TMOEI_GROUP_BITS ? -1 : 1];

static uint64_t tmoei_group_number(int64_t step, int group)
{
    return (uint64_t)step << TMOEI_GROUP_BITS | (uint64_t)group;
}

/* ==== >>machine: processor, caches, floating-point mode ======================================= */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(TMOE_NO_SIMD)
#define TMOEI_X86 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__) && !defined(TMOE_NO_SIMD) && !defined(TMOE_NO_NEON)
#define TMOEI_ARM 1
#include <arm_neon.h>
#endif

#ifdef TMOEI_X86
/* The best instruction set that the processor has and whose registers the system saves. Not by
 * __builtin_cpu_supports, which links writable data into the program. */
__attribute__((unused)) static tmoe_isa tmoei_isa_best(void)
{
    const unsigned fma_and_osxsave = 1u << 12 | 1u << 27;              /* leaf 1, ecx */
    const unsigned avx2 = 1u << 5;                                     /* leaf 7, ebx */
    const unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* the same: F DQ BW VL */
    const unsigned ymm = 0x06u, zmm = 0xe6u;                           /* saved registers */
    unsigned a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return TMOE_ISA_C;
    if ((c & fma_and_osxsave) != fma_and_osxsave) return TMOE_ISA_C;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    (void)high;
    if ((saved & ymm) != ymm) return TMOE_ISA_C;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & avx2)) return TMOE_ISA_C;
    if ((saved & zmm) != zmm || (b & avx512) != avx512) return TMOE_ISA_AVX2;
    return TMOE_ISA_AVX512;
}
#endif

/* Bytes of a core's second-level data cache, and of the third level; unchanged where unknown. */
static void tmoei_cache_sizes(size_t *l2, size_t *l3)
{
#ifdef TMOEI_X86
    unsigned a, b, c, d, leaf = 0x8000001du; /* AMD's; Intel's leaf 4 has the same layout */
    if (!__get_cpuid_count(leaf, 0, &a, &b, &c, &d) || !(a & 31u)) leaf = 4;
    for (unsigned i = 0; i < 8; i++) {
        if (!__get_cpuid_count(leaf, i, &a, &b, &c, &d)) return;
        const unsigned kind = a & 31u, level = a >> 5 & 7u;
        const size_t ways = (b >> 22) + 1u, partitions = (b >> 12 & 1023u) + 1u;
        const size_t line = (b & 4095u) + 1u, sets = (size_t)c + 1u;
        if (kind == 0) return;   /* no more caches */
        if (kind == 2) continue; /* of instructions */
        if (level == 2) *l2 = ways * partitions * line * sets;
        if (level == 3) *l3 = ways * partitions * line * sets;
    }
#else
    (void)l2;
    (void)l3;
#endif
}

/* ---- denormals ----
 * Wherever the library computes, on any thread, floats below 1.2e-38 (denormals) are read and
 * written as zero. tmoei_parallel, and public functions that compute outside of it, enter this mode
 * and restore the caller's. On Intel processors denormals make a training step five times slower.
 * Builds without vector units lack the mode, on all threads. */
typedef uint64_t tmoei_float_mode;
#if defined(TMOEI_X86)
#define TMOEI_FLUSH 0x8040u /* bits of mxcsr: flush to zero, denormals are zero */

static tmoei_float_mode tmoei_float_mode_get(void)
{
    return _mm_getcsr();
}

static void tmoei_float_mode_set(tmoei_float_mode mode)
{
    _mm_setcsr((unsigned)mode);
}
#elif defined(TMOEI_ARM)
#define TMOEI_FLUSH (UINT64_C(1) << 24) /* bit of fpcr: flush to zero */

static tmoei_float_mode tmoei_float_mode_get(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode) : : "memory");
    return mode;
}

static void tmoei_float_mode_set(tmoei_float_mode mode)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory");
}
#else
#define TMOEI_FLUSH 0u

static tmoei_float_mode tmoei_float_mode_get(void)
{
    return 0;
}

static void tmoei_float_mode_set(tmoei_float_mode mode)
{
    (void)mode;
}
#endif

/* Returns the caller's mode, for tmoei_float_mode_leave. */
static tmoei_float_mode tmoei_float_mode_enter(void)
{
    const tmoei_float_mode mode = tmoei_float_mode_get();
    if ((mode & TMOEI_FLUSH) != TMOEI_FLUSH) tmoei_float_mode_set(mode | TMOEI_FLUSH);
    return mode;
}

static void tmoei_float_mode_leave(tmoei_float_mode mode)
{
    if ((mode & TMOEI_FLUSH) != TMOEI_FLUSH) tmoei_float_mode_set(mode);
}

/* ==== >>parallel: chunks of a problem on a few lanes =============================================
 * A lane takes the chunks of its own part of a job, whose data its cache often has from the job
 * before, and then chunks of the others' parts. Any number of lanes gives the same bits: how a
 * number is computed depends on the problem only, and each chunk writes to its own place. The
 * caller waits for chunks, not for threads: one that sleeps or has lost its processor does not
 * delay it. After a job the pool's threads spin, so the next one starts within microseconds. */

#if defined(TMOE_THREADS) && (defined(__unix__) || defined(__APPLE__)) && defined(__GNUC__)
#define TMOEI_POOL 1
#include <pthread.h>
#endif
typedef void tmoei_chunk_fn(void *arg, int chunk, int lane);

/* A number in a cache line of its own. */
typedef struct tmoei_counter {
    char apart[TMOEI_ALIGN - sizeof(int)];
    int n;
} tmoei_counter;

/* A thread reads the first four only after it has claimed a chunk: until that is done the caller
 * waits, so they do not change. `parts`, the number of lanes, never changes; a job of fewer chunks
 * leaves the last parts empty. */
typedef struct tmoei_job {
    tmoei_chunk_fn *fn;
    void *arg;
    int chunks, lanes, parts;
    tmoei_counter done;                  /* chunks */
    tmoei_counter left[TMOEI_LANES_MAX]; /* chunks of each part that are not claimed; may be < 0 */
} tmoei_job;

/* The first chunk of part i. */
static int tmoei_share(const tmoei_job *job, int i)
{
    return (int)((int64_t)job->chunks * i / job->lanes);
}

static void tmoei_job_offer(tmoei_job *job, tmoei_chunk_fn *fn, void *arg, int chunks, int lanes)
{
    job->fn = fn;
    job->arg = arg;
    job->chunks = chunks;
    job->lanes = lanes;
#if defined(__GNUC__)
    __atomic_store_n(&job->done.n, 0, __ATOMIC_RELAXED);
    for (int i = 0; i < lanes; i++)
        __atomic_store_n(&job->left[i].n, tmoei_share(job, i + 1) - tmoei_share(job, i),
            __ATOMIC_RELEASE);
#endif
}

#if defined(__GNUC__)
/* Claims and runs chunks of one part until none is left. */
static void tmoei_job_take(tmoei_job *job, int part, int lane)
{
    int *const left = &job->left[part].n;
    int done = 0;
    while (__atomic_load_n(left, __ATOMIC_RELAXED) > 0) {
        const int behind = __atomic_sub_fetch(left, 1, __ATOMIC_ACQ_REL);
        if (behind < 0) break; /* another lane has claimed the last one */
        job->fn(job->arg, tmoei_share(job, part + 1) - 1 - behind, lane);
        done++;
    }
    if (done) __atomic_add_fetch(&job->done.n, done, __ATOMIC_RELEASE);
}
#endif

static void tmoei_parallel_lane(void *arg, int lane)
{
    tmoei_job *job = (tmoei_job *)arg;
    const tmoei_float_mode mode = tmoei_float_mode_enter();
#if defined(__GNUC__)
    for (int i = 0; i < job->parts; i++) tmoei_job_take(job, (lane + i) % job->parts, lane);
#else
    for (int chunk = lane; chunk < job->chunks; chunk += job->lanes) job->fn(job->arg, chunk, lane);
#endif
    tmoei_float_mode_leave(mode);
}

#ifdef TMOEI_POOL
#define TMOEI_SPINS 20000 /* pauses of 40 cycles: 0.2 ms, the longest serial piece of a step */
#define TMOEI_SPINS_YIELD 256

struct tmoei_pool {
    pthread_t threads[TMOEI_LANES_MAX];
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    tmoei_job job;
    int count; /* threads beside the caller's */
    int quit;
    int lane; /* of the thread that began last */
    tmoei_counter sleeping;
};

static void tmoei_pause(void)
{
#if defined(TMOEI_X86)
    _mm_pause();
#elif defined(TMOEI_ARM)
    __asm__ volatile("yield");
#endif
}

static int tmoei_pool_called(struct tmoei_pool *pool, int lane, int order)
{
    return __atomic_load_n(&pool->job.left[lane].n, order) > 0
        || __atomic_load_n(&pool->quit, __ATOMIC_RELAXED);
}

/* Returns 1 once the lane has chunks or the pool ends. */
static int tmoei_pool_spin(struct tmoei_pool *pool, int lane)
{
    for (int spins = 1; spins <= TMOEI_SPINS; spins++) {
        if (tmoei_pool_called(pool, lane, __ATOMIC_RELAXED)) return 1;
        if (spins % TMOEI_SPINS_YIELD) {
            tmoei_pause();
        } else {
            (void)sched_yield(); /* another thread may need the processor, or help */
            tmoei_parallel_lane(&pool->job, lane);
        }
    }
    return 0;
}

/* A thread counts itself as sleeping, then looks for work; tmoei_pool_run offers work, then reads
 * the count: at least one of the two sees the other. Waking up without work does no harm. */
static void tmoei_pool_sleep(struct tmoei_pool *pool, int lane)
{
    pthread_mutex_lock(&pool->mutex);
    __atomic_add_fetch(&pool->sleeping.n, 1, __ATOMIC_SEQ_CST);
    if (!tmoei_pool_called(pool, lane, __ATOMIC_SEQ_CST))
        pthread_cond_wait(&pool->wake, &pool->mutex);
    __atomic_sub_fetch(&pool->sleeping.n, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool->mutex);
}

static void *tmoei_pool_thread(void *arg)
{
    struct tmoei_pool *pool = (struct tmoei_pool *)arg;
    const int lane = __atomic_add_fetch(&pool->lane, 1, __ATOMIC_RELAXED);
    for (;;) {
        if (!tmoei_pool_spin(pool, lane)) tmoei_pool_sleep(pool, lane);
        if (__atomic_load_n(&pool->quit, __ATOMIC_RELAXED)) return NULL;
        tmoei_parallel_lane(&pool->job, lane);
    }
}

static void tmoei_pool_wake(struct tmoei_pool *pool, int quit)
{
    pthread_mutex_lock(&pool->mutex);
    __atomic_store_n(&pool->quit, quit, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void tmoei_pool_destroy(tmoe_ctx *ctx)
{
    struct tmoei_pool *pool = ctx->pool;
    if (!pool) return;
    tmoei_pool_wake(pool, 1);
    for (int i = 0; i < pool->count; i++) (void)pthread_join(pool->threads[i], NULL);
    (void)pthread_mutex_destroy(&pool->mutex);
    (void)pthread_cond_destroy(&pool->wake);
    tmoei_free(ctx, pool);
}

static void tmoei_pool_create(tmoe_ctx *ctx)
{
    struct tmoei_pool *pool = (struct tmoei_pool *)tmoei_alloc(ctx, 1, sizeof *pool, 1);
    ctx->pool = pool;
    if (!pool) return;
    pool->job.parts = ctx->lanes;
    (void)pthread_mutex_init(&pool->mutex, NULL);
    (void)pthread_cond_init(&pool->wake, NULL);
    for (int i = 0; i < ctx->lanes - 1; i++) {
        if (pthread_create(&pool->threads[i], NULL, tmoei_pool_thread, pool)) {
            ctx->error = TMOE_ERR_MEMORY;
            return;
        }
        pool->count++;
    }
}

/* The caller is lane 0, and then waits for the chunks that others have claimed. */
static void tmoei_pool_run(struct tmoei_pool *pool)
{
    if (__atomic_fetch_add(&pool->sleeping.n, 0, __ATOMIC_SEQ_CST)) tmoei_pool_wake(pool, 0);
    tmoei_parallel_lane(&pool->job, 0);
    int spins = 0;
    while (__atomic_load_n(&pool->job.done.n, __ATOMIC_ACQUIRE) != pool->job.chunks) {
        spins++;
        if (spins > TMOEI_SPINS)
            (void)sched_yield();
        else
            tmoei_pause();
    }
}
#else

static void tmoei_pool_create(tmoe_ctx *ctx)
{
    ctx->lanes = 1;
}

static void tmoei_pool_destroy(tmoe_ctx *ctx)
{
    (void)ctx;
}
#endif

/* Runs fn(arg, chunk, lane) once for each chunk, each on some lane, 0 <= lane < ctx->lanes, and
 * returns when all are done. */
static void tmoei_parallel(tmoe_ctx *ctx, tmoei_chunk_fn *fn, void *arg, int chunks)
{
    const int lanes = tmoei_least(chunks, ctx->lanes);
    if (lanes > 1 && ctx->config.parallel_fn) {
        tmoei_job job;
        job.parts = lanes;
        tmoei_job_offer(&job, fn, arg, chunks, lanes);
        ctx->config.parallel_fn(ctx->config.parallel_user, tmoei_parallel_lane, &job, lanes);
        return;
    }
#ifdef TMOEI_POOL
    if (lanes > 1 && ctx->pool) {
        tmoei_job_offer(&ctx->pool->job, fn, arg, chunks, lanes);
        tmoei_pool_run(ctx->pool);
        return;
    }
#endif
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    for (int chunk = 0; chunk < chunks; chunk++) fn(arg, chunk, 0);
    tmoei_float_mode_leave(mode);
}

/* ==== >>kernels: the inner loops, written once, compiled for each instruction set ================
 * The header includes itself with TMOEI_PASS set, once for each instruction set, and compiles the
 * body below with that set's target attribute. A plain `cc -O2` therefore contains all sets, and a
 * context takes the best one that the processor has.
 *
 * Matrix product C (M,N) = A (M,K) B (K,N):
 *                 N           B is read in panels of NR columns, A in panels of at most MR rows:
 *            +--------+       both in place or packed, k by k (a transposed B is always packed).
 *            |  | |   | K     For each k: load NR numbers of B; for each of the MR rows: broadcast
 *            |  |B|   |       one number of A, multiply, add.
 *            +--------+       The MR x NR sums stay in registers for a whole piece of K. K is cut
 *       K        |            at TMOEI_KC so that a panel of B stays in the nearest caches. A
 *     +----+ +--------+       tile's rows of A stay in L2.
 *     |----| |  +-+   |       M is cut into equal panels (32 = 11 + 11 + 10, not 14 + 14 + 4).
 *   M | A  | |  |C|   |       Lanes take tiles of C.
 *     |----| |  +-+   |
 *     +----+ +--------+
 * The loops around the micro-kernels are in >>products. Measurements in both rooms are from
 * tests/bench.c and tests/bench_step.c on an AMD EPYC (Zen 4). */

#define TMOEI_NR_MAX 32 /* columns of the widest panel of B */
#define TMOEI_MR_MAX 14 /* rows of the highest panel of A */

#define TMOEI_LINE 16         /* floats in a cache line */
#define TMOEI_SET_STRIDE 1024 /* lines so many floats apart fall into one set of L1: 8 lines */

/* Measured bounds of the kernels, in floats. */
#define TMOEI_DOT_L1 6144       /* rows of A that dots keeps in L1: 24 KiB */
#define TMOEI_DOT_LONG 512      /* one row from here on: B is read row by row */
#define TMOEI_DOT_SHORT 1024    /* rows up to here: the next ones are prefetched */
#define TMOEI_TRANSPOSE_LONG 64 /* lines longer than this: what follows is prefetched */
#define TMOEI_MERGE_SHORT 128   /* lines up to here are merged by a micro-kernel */
#define TMOEI_MERGE_SUMS 4096   /* longer ones in pieces of 16 KiB */
#define TMOEI_MERGE_UNSEEN 768  /* pieces up to here: the next experts' are prefetched */

/* A matrix in memory: element (row, col) is x[row * stride + col], or x[col * stride + row] where
 * `transposed` is set. */
typedef struct tmoei_matrix {
    const float *x;
    int rows, cols; /* as the product sees them */
    size_t stride;
    int transposed;
} tmoei_matrix;

/* The matrix that a product writes: C = beta C + A B. beta is 0 (C is not read) or 1. */
typedef struct tmoei_output {
    float *x;
    size_t stride;
    float beta;
} tmoei_output;

static tmoei_matrix tmoei_matrix_of(const float *x, int rows, int cols, size_t stride)
{
    const tmoei_matrix matrix = { x, rows, cols, stride, 0 };
    return matrix;
}

static tmoei_matrix tmoei_transposed(tmoei_matrix m)
{
    const tmoei_matrix turned = { m.x, m.cols, m.rows, m.stride, !m.transposed };
    return turned;
}

/* The part of m whose first element is (row, col). */
static tmoei_matrix tmoei_window(const tmoei_matrix *m, int row, int col, int rows, int cols)
{
    const size_t down = (size_t)(m->transposed ? col : row);
    const size_t across = (size_t)(m->transposed ? row : col);
    const tmoei_matrix window = { m->x + down * m->stride + across, rows, cols, m->stride,
        m->transposed };
    return window;
}

static tmoei_output tmoei_output_of(float *x, size_t stride, float beta)
{
    const tmoei_output output = { x, stride, beta };
    return output;
}

/* What follows a product while its tile is in the cache: z = C + bias;  C = act(z) + residual */
typedef struct tmoei_epilogue {
    const float *bias;          /* (N) or NULL */
    tmoe_activation activation; /* NONE, GELU, RELU */
    float *pre;                 /* (M, N) or NULL: receives z */
    const float *residual;      /* (M, N) or NULL */
    size_t pre_stride, residual_stride;
} tmoei_epilogue;

/* What a micro-kernel reads of A: element (i, k) is x[i * row + k * step]. */
typedef struct tmoei_panel {
    const float *x;
    size_t row, step;
} tmoei_panel;

/* One expert's parameters and the gradients of up to four tasks: see merge_backward. */
typedef struct tmoei_merge_lines {
    const float *theta, *first; /* of this expert, and of expert 0 */
    ptrdiff_t next;             /* floats from theta to the expert that is read next */
    const float *g;             /* (tasks, n), a stride apart */
    size_t stride;
    int tasks;     /* at least 1; the first four are used */
    float r[4];    /* the tasks' weights for this expert; 0 beyond the last task */
    float *dtheta; /* out, or NULL */
    float dots[4]; /* out */
} tmoei_merge_lines;

typedef struct tmoei_adamw_constants {
    float scale; /* of the gradient */
    float beta1, beta2;
    float correction1, correction2; /* 1 / (1 - beta^t) */
    float epsilon, rate;
    float decay; /* rate times weight decay */
} tmoei_adamw_constants;

/* The kernels; n counts floats, alignment is not needed. Structs are passed by pointer: a copy by
 * vector moves waits for the stores of its fields (+100 cycles a call).
 * C (rows, NR) = beta C + A (rows, K) B (K, NR) for one number of rows; row k of B is b + k * ldb.
 * Columns of C from `columns` on are neither read nor written. */
typedef void tmoei_micro_fn(int K, const tmoei_panel *a, const float *b, size_t ldb,
    const tmoei_output *c, int columns);

/* C (M,N) = beta C + A (M,K) B^T for few rows M; b is (N,K), not marked as transposed */
typedef void tmoei_dots_fn(const tmoei_matrix *a, const tmoei_matrix *b, const tmoei_output *c);

/* dst[col * width + row] = src (row, col) */
typedef void tmoei_transpose_fn(float *dst, size_t width, const tmoei_matrix *src);

/* Applies e to the tile c (rows, columns) whose first element is (row, column) of C. */
typedef void tmoei_epilogue_fn(const tmoei_epilogue *e, float *c, size_t stride, int row,
    int column, int rows, int columns);

typedef float tmoei_dot_fn(const float *a, const float *b, size_t n);
typedef float tmoei_sum_fn(const float *x, size_t n);
typedef float tmoei_maximum_fn(const float *x, size_t n);

/* y = beta y + a x */
typedef void tmoei_scale_add_fn(float *y, float beta, float a, const float *x, size_t n);

/* y = exp(scale x - shift), unless y is NULL; returns the sum of the exponentials */
typedef float tmoei_exp_sum_fn(float *y, const float *x, float scale, float shift, size_t n);

/* dx = (exp(x - log_sum_exp) - shift) weight */
typedef void tmoei_softmax_gradient_fn(float *dx, const float *x, float log_sum_exp, float shift,
    float weight, size_t n);

/* p = exp(scale s - lse) replaces s;  ds = p (dp - delta) scale replaces dp: one key, n queries */
typedef void tmoei_softmax_backward_fn(float *s, float *dp, const float *lse, const float *delta,
    float scale, size_t n);

/* y = gelu(x), or y = dy gelu'(x) where dy is given */
typedef void tmoei_gelu_fn(float *y, const float *dy, const float *x, size_t n);

/* mean = sum x / n;  inv = 1 / sqrt(sum (x - mean)^2 / n + epsilon);
 * xhat = (x - mean) inv;  y = gain xhat + bias */
typedef void tmoei_norm_forward_fn(float *y, const float *x, const float *gain, const float *bias,
    float epsilon, float *mean, float *inv, size_t n);

/* g = gain dy;  dx = beta dx + inv (g - mean(g) - xhat mean(g xhat)) */
typedef void tmoei_norm_backward_fn(float *dx, float beta, const float *x, const float *dy,
    const float *gain, float mean, float inv, size_t n);

/* dgain += dy xhat;  dbias += dy;  either may be NULL */
typedef void tmoei_norm_parameters_fn(float *dgain, float *dbias, const float *x, const float *dy,
    float mean, float inv, size_t n);

/* out = sum_e r_e theta_e, added to out where `more` is set; theta_e is theta + e * stride */
typedef void tmoei_merge_fn(float *out, int more, const float *theta, size_t stride, const float *r,
    int experts, size_t n);

/* dtheta += sum_t r_t g_t;  dots_t = <g_t, theta - first>;  for four tasks t */
typedef void tmoei_merge_backward_fn(tmoei_merge_lines *lines, size_t n);

/* One step of AdamW (Loshchilov and Hutter 2019), with g = scale grad:
 *   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;
 *   theta -= rate (m correction1) / (sqrt(v correction2) + epsilon) + decay theta */
typedef void tmoei_adamw_fn(float *theta, const float *grad, float *m, float *v, size_t n,
    const tmoei_adamw_constants *constants);

/* y_i = x_i scale where hash(key, first + i) >= limit, else 0 */
typedef void tmoei_dropout_fn(float *y, const float *x, size_t n, uint32_t first, uint32_t key,
    uint32_t limit, float scale);

/* In each head of 2 half floats, with j = i + half and s = direction * sine:
 *   y_i = x_i cos_i - x_j s_i;  y_j = x_j cos_i + x_i s_i
 * table has `half` cosines, then as many sines; y may be x */
typedef void tmoei_rotary_fn(float *y, const float *x, const float *table, float direction,
    size_t half, size_t heads);

#define TMOEI_KERNELS(X) \
    X(dots) \
    X(transpose) \
    X(epilogue) \
    X(dot) \
    X(sum) \
    X(maximum) \
    X(scale_add) \
    X(exp_sum) \
    X(softmax_gradient) \
    X(softmax_backward) \
    X(gelu) \
    X(norm_forward) \
    X(norm_backward) \
    X(norm_parameters) \
    X(merge) \
    X(merge_backward) \
    X(adamw) \
    X(dropout) \
    X(rotary)
#define TMOEI_KERNEL_FIELD(name) tmoei_##name##_fn *name;
#define TMOEI_KERNEL_ENTRY(name) TMOEI_FN(name),

/* The table of an instruction set: kernels->dots is a tmoei_dots_fn, and so on. */
typedef struct tmoei_kernels {
    const char *name;
    int mr, nr;                   /* most rows, and columns, of a register tile */
    tmoei_micro_fn *const *micro; /* micro[rows], 1 <= rows <= mr */
    TMOEI_KERNELS(TMOEI_KERNEL_FIELD)
} tmoei_kernels;

/* clang-format off */
/* ---- vector words ----
 * Each word says what it is in plain C, NEON, AVX2 and AVX-512, in this order; TMOEI_PASS picks one
 * of the four. TMOEI_V is a vector of TMOEI_VW floats; + - * / work on it as on a float. AVX-512
 * uses masked forms because gcc 12 warns that its plain ones read undefined registers. */
#define TMOEI_GLUE(a, b) TMOEI_GLUED(a, b)
#define TMOEI_GLUED(a, b) a##b
#define TMOEI_PICK(c, neon, avx2, avx512) TMOEI_GLUE(TMOEI_PICK_, TMOEI_PASS)(c, neon, avx2, avx512)
#define TMOEI_PICK_0(c, neon, avx2, avx512) c
#define TMOEI_PICK_1(c, neon, avx2, avx512) neon
#define TMOEI_PICK_2(c, neon, avx2, avx512) avx2
#define TMOEI_PICK_3(c, neon, avx2, avx512) avx512

/* a function's name in this pass (tmoei_dot_avx2, ...), and what its definition begins with */
#define TMOEI_FN(name) TMOEI_GLUE(tmoei_##name, TMOEI_PICK(_c, _neon, _avx2, _avx512))
#define TMOEI_KERNEL TMOEI_PICK(, , __attribute__((target("avx2,fma"))), \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))) static

/* the first n of 8 or 16 places; all of them */
#define TMOEI_MASK8(n) \
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define TMOEI_MASK16(n) (__mmask16)((1u << (n)) - 1u)
#define TMOEI_ALL16 (__mmask16)0xffff
#define TMOEI_ALL8 (__mmask8)0xff

#define TMOEI_V TMOEI_PICK(float, float32x4_t, __m256, __m512)
#define TMOEI_VW TMOEI_PICK(1, 4, 8, 16)

/* x in every place */
#define TMOEI_VSET(x) TMOEI_PICK( \
    (x), \
    vdupq_n_f32(x), \
    _mm256_set1_ps(x), \
    _mm512_set1_ps(x))

#define TMOEI_VLOAD(p) TMOEI_PICK( \
    (*(p)), \
    vld1q_f32(p), \
    _mm256_loadu_ps(p), \
    _mm512_loadu_ps(p))
#define TMOEI_VSTORE(p, v) TMOEI_PICK( \
    (*(p) = (v)), \
    vst1q_f32(p, v), \
    _mm256_storeu_ps(p, v), \
    _mm512_storeu_ps(p, v))

/* the first n < VW places: the others are loaded as zeros, and not stored */
#define TMOEI_VLOADN(p, n) TMOEI_PICK( \
    ((n) ? *(p) : 0.0f), \
    tmoei_vloadn_neon(p, n), \
    _mm256_maskload_ps(p, TMOEI_MASK8(n)), \
    _mm512_maskz_loadu_ps(TMOEI_MASK16(n), p))
#define TMOEI_VSTOREN(p, v, n) TMOEI_PICK( \
    ((n) ? (void)(*(p) = (v)) : (void)0), \
    tmoei_vstoren_neon(p, v, n), \
    _mm256_maskstore_ps(p, TMOEI_MASK8(n), v), \
    _mm512_mask_storeu_ps(p, TMOEI_MASK16(n), v))

#define TMOEI_VFMA(a, b, c) TMOEI_PICK( \
    ((a) * (b) + (c)), \
    vfmaq_f32(c, a, b), \
    _mm256_fmadd_ps(a, b, c), \
    _mm512_fmadd_ps(a, b, c))
#define TMOEI_VHORNER(p, x, c) TMOEI_VFMA(p, x, TMOEI_VSET(c)) /* p x + c */
#define TMOEI_VMAX(a, b) TMOEI_PICK( \
    ((a) > (b) ? (a) : (b)), \
    vmaxq_f32(a, b), \
    _mm256_max_ps(a, b), \
    _mm512_maskz_max_ps(TMOEI_ALL16, a, b))
#define TMOEI_VMIN(a, b) TMOEI_PICK( \
    ((a) < (b) ? (a) : (b)), \
    vminq_f32(a, b), \
    _mm256_min_ps(a, b), \
    _mm512_maskz_min_ps(TMOEI_ALL16, a, b))
#define TMOEI_VSQRT(a) TMOEI_PICK( \
    sqrtf(a), \
    vsqrtq_f32(a), \
    _mm256_sqrt_ps(a), \
    _mm512_maskz_sqrt_ps(TMOEI_ALL16, a))
#define TMOEI_VROUND(a) TMOEI_PICK( \
    floorf((a) + 0.5f), \
    vrndnq_f32(a), \
    _mm256_round_ps(a, 8), \
    _mm512_maskz_cvtepi32_ps(TMOEI_ALL16, _mm512_maskz_cvtps_epi32(TMOEI_ALL16, a)))

/* a 2^n for whole n: NEON and AVX2 build 2^n from its exponent's bits */
#define TMOEI_VSCALE(a, n) TMOEI_PICK( \
    ldexpf(a, (int)(n)), \
    (a) * vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)), \
    (a) * _mm256_castsi256_ps(_mm256_slli_epi32( \
        _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)), \
    _mm512_maskz_scalef_ps(TMOEI_ALL16, a, n))

/* EACH runs its statements over n floats: for whole vectors, then once for the rest; `at` is the
 * index, `left` the number of floats of this vector. There READ(p) and WRITE(p, v) take the vector
 * at p + at: plain in the first loop, where `left` is the constant VW, masked in the rest. CUT sets
 * the places beyond `left` to zero. */
#define TMOEI_EACH(n, ...) do { \
        size_t at = 0; \
        for (; at + TMOEI_VW <= (n); at += TMOEI_VW) { \
            const int left = TMOEI_VW; \
            (void)left; \
            __VA_ARGS__; \
        } \
        if (at < (n)) { \
            const int left = (int)((n) - at); \
            (void)left; \
            __VA_ARGS__; \
        } \
    } while (0)
#define TMOEI_VREAD(p) (left == TMOEI_VW ? TMOEI_VLOAD((p) + at) : TMOEI_VLOADN((p) + at, left))
#define TMOEI_VWRITE(p, v) do { \
        if (left == TMOEI_VW) \
            TMOEI_VSTORE((p) + at, v); \
        else \
            TMOEI_VSTOREN((p) + at, v, left); \
    } while (0)
#define TMOEI_VCUT(v) do { \
        if (left < TMOEI_VW) { \
            float some[TMOEI_VW]; \
            TMOEI_VSTORE(some, v); \
            v = TMOEI_VLOADN(some, left); \
        } \
    } while (0)

/* the sums of four vectors into y[0] .. y[3] */
#define TMOEI_VSUM4(y, a, b, c, d) TMOEI_PICK( \
    (y[0] = a, y[1] = b, y[2] = c, y[3] = d), \
    vst1q_f32(y, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))), \
    _mm_storeu_ps(y, TMOEI_FN(vsum4)(a, b, c, d)), \
    _mm_storeu_ps(y, TMOEI_FN(vsum4)(a, b, c, d)))

/* all numbers of an AVX vector into one by op (add, max), half by half */
#define TMOEI_HALF(a, i) _mm512_maskz_extractf32x8_ps(TMOEI_ALL8, a, i)
#define TMOEI_FOLD(op, a) TMOEI_PICK(a, a, a, _mm256_##op##_ps(TMOEI_HALF(a, 0), TMOEI_HALF(a, 1)))
#define TMOEI_REDUCE(name, op) \
TMOEI_KERNEL float TMOEI_FN(name)(TMOEI_V a) \
{ \
    const __m256 h = TMOEI_FOLD(op, a); \
    __m128 s = _mm_##op##_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)); \
    s = _mm_##op##_ps(s, _mm_movehl_ps(s, s)); \
    return _mm_cvtss_f32(_mm_##op##_ss(s, _mm_shuffle_ps(s, s, 1))); \
}

/* ---- the register tile ----
 * MR rows of NR numbers: two vectors wide, four numbers in plain C. Its sums are variables:
 *
 *              j = 0   j = 1
 *      i = 0   c00     c01         ACROSS(X, i)   writes X(i, 0) X(i, 1): the vectors of row i
 *      i = 1   c10     c11         ROWS(X)        writes X(0, a[0]) ... X(13, a12[row]): all rows,
 *      ...                                        and A's number of each row at the present k
 *      i = 13  c130    c131        HEIGHTS(X)     writes X(1) X(2) ... X(MR): all heights
 *
 * where X is the name of another macro. HEIGHTS(MICRO) makes the micro-kernels of 1 .. MR rows.
 * Each writes out all 14 rows; `height` is a constant, so the compiler drops those beyond it. A
 * pointer to every third row reaches the two behind it by an address with a scaled index. */
#define TMOEI_MR TMOEI_PICK(4, 8, 6, 14)
#define TMOEI_NR (TMOEI_PICK(4, 2, 2, 2) * TMOEI_VW)

#define TMOEI_ACROSS(X, i) X(i, 0) X(i, 1) TMOEI_PICK(X(i, 2) X(i, 3), , , )
#define TMOEI_ROWS(X) \
    X(0, a[0]) X(1, a[row]) X(2, a[2 * row]) \
    X(3, a3[0]) X(4, a3[row]) X(5, a3[2 * row]) \
    X(6, a6[0]) X(7, a6[row]) X(8, a6[2 * row]) \
    X(9, a9[0]) X(10, a9[row]) X(11, a9[2 * row]) \
    X(12, a12[0]) X(13, a12[row])
#define TMOEI_HEIGHTS(X) TMOEI_GLUE(TMOEI_HEIGHTS_, TMOEI_MR)(X)
#define TMOEI_HEIGHTS_4(X) X(1) X(2) X(3) X(4)
#define TMOEI_HEIGHTS_6(X) TMOEI_HEIGHTS_4(X) X(5) X(6)
#define TMOEI_HEIGHTS_8(X) TMOEI_HEIGHTS_6(X) X(7) X(8)
#define TMOEI_HEIGHTS_14(X) TMOEI_HEIGHTS_8(X) X(9) X(10) X(11) X(12) X(13) X(14)

#define TMOEI_ZERO(i, j) TMOEI_V c##i##j = TMOEI_VSET(0.0f);
#define TMOEI_LOAD(i, j) const TMOEI_V b##j = TMOEI_VLOAD(b + j * TMOEI_VW);
/* c += x b, in assembler: one instruction, whose sum stays in its register */
#define TMOEI_STEP(i, j) TMOEI_PICK( \
    c##i##j = TMOEI_VFMA(x, b##j, c##i##j), \
    c##i##j = TMOEI_VFMA(x, b##j, c##i##j), \
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(c##i##j) : "x"(x), "x"(b##j)), \
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(c##i##j) : "v"(x), "v"(b##j)));
#define TMOEI_STORE(i, j) \
    TMOEI_FN(store)(c + (size_t)i * ldc + j * TMOEI_VW, c##i##j, add, width - j * TMOEI_VW);

#define TMOEI_ROW_ZERO(i, number) TMOEI_ACROSS(TMOEI_ZERO, i)
#define TMOEI_ROW_STEP(i, number) \
    if (i < height) { \
        const TMOEI_V x = TMOEI_VSET(number); \
        TMOEI_ACROSS(TMOEI_STEP, i) \
    }
#define TMOEI_ROW_STORE(i, number) \
    if (i < height) { \
        TMOEI_ACROSS(TMOEI_STORE, i) \
    }

/* One k. ADDED tells the compiler that the pointers changed; else it trades the additions for more
 * addresses than there are registers. */
#define TMOEI_ADDED __asm__("" : "+r"(a), "+r"(a3), "+r"(a6), "+r"(a9), "+r"(a12), "+r"(b));
#define TMOEI_K_STEP \
    { \
        TMOEI_ACROSS(TMOEI_LOAD, 0) \
        TMOEI_ROWS(TMOEI_ROW_STEP) \
        a += step; \
        a3 += step; \
        a6 += step; \
        a9 += step; \
        a12 += step; \
        b += ldb; \
        TMOEI_PICK(, , TMOEI_ADDED, TMOEI_ADDED) \
    }

/* The micro-kernel of `count` rows. Four k at a time, or counting would take a sixth of the
 * instruction slots. Meanwhile the rows of C are prefetched (else up to -10 %) and, where B is read
 * in place, the panel after the next. */
#define TMOEI_MICRO(count) \
TMOEI_KERNEL void TMOEI_FN(micro##count)(int K, const tmoei_panel *panel, const float *b, \
    size_t ldb, const tmoei_output *output, int columns) \
{ \
    const int height = count; \
    const int add = output->beta != 0.0f; \
    const size_t row = panel->row, step = panel->step; \
    const float *a = panel->x; \
    const float *a3 = a + 3 * row; \
    const float *a6 = a3 + 3 * row; \
    const float *a9 = a6 + 3 * row; \
    const float *a12 = a9 + 3 * row; \
    const size_t ldc = output->stride; \
    float *const c = output->x; \
    const float *ahead = c; \
    const float *const last = c + (size_t)(height - 1) * ldc; \
    TMOEI_ROWS(TMOEI_ROW_ZERO) \
    for (; K >= 4; K -= 4) { \
        if (ldb != TMOEI_NR) { \
            for (int k = 0; k < 4; k++) { \
                TMOEI_PREFETCH_L2(b + (size_t)k * ldb + 2 * TMOEI_NR); \
                TMOEI_PREFETCH_L2(b + (size_t)k * ldb + 2 * TMOEI_NR + TMOEI_VW); \
            } \
        } \
        TMOEI_PREFETCH(ahead); \
        TMOEI_PREFETCH(ahead + TMOEI_NR - 1); \
        ahead += ahead < last ? ldc : 0; \
        TMOEI_K_STEP \
        TMOEI_K_STEP \
        TMOEI_K_STEP \
        TMOEI_K_STEP \
    } \
    for (; K > 0; K--) TMOEI_K_STEP \
    if (columns >= TMOEI_NR) { \
        const int width = TMOEI_NR; \
        TMOEI_ROWS(TMOEI_ROW_STORE) \
    } else { \
        const int width = columns; \
        TMOEI_ROWS(TMOEI_ROW_STORE) \
    } \
}
#define TMOEI_MICRO_NAME(count) TMOEI_FN(micro##count),

/* Dot products of `count` rows of A with two or, where the registers allow it, four rows of B at a
 * time, vectors along K. The processor prefetches long rows itself; the next short ones are
 * prefetched here. */
#define TMOEI_DOT_HEIGHTS(X) \
    TMOEI_PICK(TMOEI_HEIGHTS_4, TMOEI_HEIGHTS_8, TMOEI_HEIGHTS_6, TMOEI_HEIGHTS_8)(X)
#define TMOEI_DOT_ZERO(i, number) \
    TMOEI_V c##i##0 = TMOEI_VSET(0.0f), c##i##1 = c##i##0, c##i##2 = c##i##0, c##i##3 = c##i##0;
#define TMOEI_DOT_STEP(i, number) \
    if (i < height) { \
        const TMOEI_V x = TMOEI_VREAD(a + (size_t)i * lda); \
        TMOEI_STEP(i, 0) \
        TMOEI_STEP(i, 1) \
        if (wide) { \
            TMOEI_STEP(i, 2) \
            TMOEI_STEP(i, 3) \
        } \
    }
#define TMOEI_DOT_STORE(i, number) \
    if (i < height) { \
        float sums[4]; \
        float *y = c + (size_t)i * ldc + (size_t)n; \
        TMOEI_VSUM4(sums, c##i##0, c##i##1, c##i##2, c##i##3); \
        for (int j = 0; j < across && n + j < N; j++) \
            y[j] = (beta != 0.0f ? y[j] : 0.0f) + sums[j]; \
    }
#define TMOEI_DOTS(count) \
TMOEI_KERNEL void TMOEI_FN(dots##count)(const tmoei_matrix *A, const tmoei_matrix *B, \
    const tmoei_output *C) \
{ \
    const int N = B->rows, K = A->cols; \
    const size_t lda = A->stride, ldb = B->stride, ldc = C->stride; \
    const float *const a = A->x, *const b = B->x; \
    float *const c = C->x; \
    const float beta = C->beta; \
    const int height = count; \
    const int wide = 4 * count + 5 <= TMOEI_PICK(32, 32, 16, 32); /* vector registers */ \
    const int across = wide ? 4 : 2; \
    const size_t ahead = K <= TMOEI_DOT_SHORT ? (size_t)across * ldb : 0; \
    for (int n = 0; n < N; n += across) { \
        const float *p0 = b + (size_t)n * ldb; \
        const float *p1 = n + 1 < N ? p0 + ldb : p0; \
        const float *p2 = wide && n + 2 < N ? p1 + ldb : p0; \
        const float *p3 = wide && n + 3 < N ? p2 + ldb : p0; \
        TMOEI_ROWS(TMOEI_DOT_ZERO) \
        TMOEI_EACH((size_t)K, \
            const TMOEI_V b0 = TMOEI_VREAD(p0), b1 = TMOEI_VREAD(p1); \
            const TMOEI_V b2 = wide ? TMOEI_VREAD(p2) : b0; \
            const TMOEI_V b3 = wide ? TMOEI_VREAD(p3) : b0; \
            TMOEI_PREFETCH(p0 + ahead + at); \
            TMOEI_PREFETCH(p1 + ahead + at); \
            if (wide) { \
                TMOEI_PREFETCH(p2 + ahead + at); \
                TMOEI_PREFETCH(p3 + ahead + at); \
            } \
            TMOEI_ROWS(TMOEI_DOT_STEP)); \
        TMOEI_ROWS(TMOEI_DOT_STORE) \
    } \
}
#define TMOEI_DOTS_NAME(count) TMOEI_FN(dots##count),
/* clang-format on */
#else

/* ---- the body of a pass ---- */

#if TMOEI_PASS >= 2
TMOEI_REDUCE(vsum, add)
TMOEI_REDUCE(vmaximum, max)

TMOEI_KERNEL inline __m128 TMOEI_FN(vsum4)(TMOEI_V a, TMOEI_V b, TMOEI_V c, TMOEI_V d)
{
    const __m256 p = TMOEI_FOLD(add, a), q = TMOEI_FOLD(add, b), r = TMOEI_FOLD(add, c);
    const __m256 s = TMOEI_FOLD(add, d);
    const __m256 pq = _mm256_add_ps(_mm256_unpacklo_ps(p, q), _mm256_unpackhi_ps(p, q));
    const __m256 rs = _mm256_add_ps(_mm256_unpacklo_ps(r, s), _mm256_unpackhi_ps(r, s));
    const __m256 t =
        _mm256_add_ps(_mm256_shuffle_ps(pq, rs, 0x44), _mm256_shuffle_ps(pq, rs, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}
#else

TMOEI_KERNEL inline float TMOEI_FN(vsum)(TMOEI_V a)
{
    return TMOEI_PICK(a, vaddvq_f32(a), , );
}

TMOEI_KERNEL inline float TMOEI_FN(vmaximum)(TMOEI_V a)
{
    return TMOEI_PICK(a, vmaxvq_f32(a), , );
}
#endif

#if TMOEI_PASS == 1

TMOEI_KERNEL TMOEI_V TMOEI_FN(vloadn)(const float *p, int n)
{
    float x[4] = { 0.0f, 0.0f, 0.0f, 0.0f };
    for (int i = 0; i < n; i++) x[i] = p[i];
    return vld1q_f32(x);
}

TMOEI_KERNEL void TMOEI_FN(vstoren)(float *p, TMOEI_V v, int n)
{
    float x[4];
    vst1q_f32(x, v);
    for (int i = 0; i < n; i++) p[i] = x[i];
}
#endif

/* exp(x) = 2^n (1 + r + r^2 q(r)),  n = round(x / ln 2),  r = x - n ln 2 with ln 2 in two parts
 * q is a minimax polynomial on |r| <= ln 2 / 2; the error is below 2 ulp. x is clamped to
 * [-87.3, 88.3], so the result is never 0, denormal or infinite. */
TMOEI_KERNEL TMOEI_V TMOEI_FN(vexp)(TMOEI_V x)
{
    x = TMOEI_VMIN(TMOEI_VMAX(x, TMOEI_VSET(-87.3f)), TMOEI_VSET(88.3f));
    TMOEI_V n = TMOEI_VROUND(x * TMOEI_VSET(1.44269504f));
    TMOEI_V r = TMOEI_VFMA(n, TMOEI_VSET(-0.693145752f), x);
    r = TMOEI_VFMA(n, TMOEI_VSET(-1.42860677e-6f), r);
    TMOEI_V p = TMOEI_VFMA(r, TMOEI_VSET(1.38146018e-3f), TMOEI_VSET(8.36873204e-3f));
    p = TMOEI_VHORNER(p, r, 4.16683891e-2f);
    p = TMOEI_VHORNER(p, r, 1.66665205e-1f);
    p = TMOEI_VHORNER(p, r, 0.499999934f);
    p = TMOEI_VHORNER(p, r, 1.0f);
    p = TMOEI_VHORNER(p, r, 1.0f);
    return TMOEI_VSCALE(p, n);
}

/* erf(x) = x P(x^2) / Q(x^2) on [-4, 4], the rational fit of Eigen; absolute error below 3e-7 */
TMOEI_KERNEL TMOEI_V TMOEI_FN(verf)(TMOEI_V x)
{
    x = TMOEI_VMIN(TMOEI_VMAX(x, TMOEI_VSET(-4.0f)), TMOEI_VSET(4.0f));
    TMOEI_V s = x * x;
    TMOEI_V p =
        TMOEI_VFMA(s, TMOEI_VSET(-2.72614225801306e-10f), TMOEI_VSET(2.77068142495902e-08f));
    p = TMOEI_VHORNER(p, s, -2.10102402082508e-06f);
    p = TMOEI_VHORNER(p, s, -5.69250639462346e-05f);
    p = TMOEI_VHORNER(p, s, -7.34990630326855e-04f);
    p = TMOEI_VHORNER(p, s, -2.95459980854025e-03f);
    p = TMOEI_VHORNER(p, s, -1.60960333262415e-02f);
    TMOEI_V q =
        TMOEI_VFMA(s, TMOEI_VSET(-1.45660718464996e-05f), TMOEI_VSET(-2.13374055278905e-04f));
    q = TMOEI_VHORNER(q, s, -1.68282697438203e-03f);
    q = TMOEI_VHORNER(q, s, -7.37332916720468e-03f);
    q = TMOEI_VHORNER(q, s, -1.42647390514189e-02f);
    return x * p / q;
}

/* gelu = x Phi(x), Phi = (1 + erf(x / sqrt 2)) / 2 */
TMOEI_KERNEL TMOEI_V TMOEI_FN(vgelu)(TMOEI_V x)
{
    TMOEI_V half = x * TMOEI_VSET(0.5f);
    return TMOEI_VFMA(half, TMOEI_FN(verf)(x * TMOEI_VSET(0.70710678f)), half);
}

/* gelu'(x) = Phi(x) + x phi(x),  phi(x) = exp(-x^2 / 2) / sqrt(2 pi). With u = |x|:
 *   gelu'(x) = 1/2 +- d,  d = 1/2 + u phi(u) - (1 - Phi(u)),  with the sign of x
 *   1 - Phi(u) = t P(t) exp(-u^2 / 2),  t = 1 / (1 + 0.2316419 u)
 * The second line is Abramowitz and Stegun 26.2.17, error 8e-8; it shares the exp of phi. From
 * u = 13 on both terms are 0 in floats. */
TMOEI_KERNEL TMOEI_V TMOEI_FN(vgelu_derivative)(TMOEI_V x)
{
    TMOEI_V u = TMOEI_VMIN(TMOEI_VMAX(x, -x), TMOEI_VSET(13.0f));
    TMOEI_V t = TMOEI_VSET(1.0f) / TMOEI_VFMA(u, TMOEI_VSET(0.2316419f), TMOEI_VSET(1.0f));
    TMOEI_V p = TMOEI_VFMA(t, TMOEI_VSET(0.530702714f), TMOEI_VSET(-0.726576014f));
    p = TMOEI_VHORNER(p, t, 0.710706871f);
    p = TMOEI_VHORNER(p, t, -0.142248368f);
    p = TMOEI_VHORNER(p, t, 0.127414796f);
    p = TMOEI_VFMA(u, TMOEI_VSET(0.39894228f), -(p * t));
    TMOEI_V d = TMOEI_VFMA(TMOEI_FN(vexp)(u * u * TMOEI_VSET(-0.5f)), p, TMOEI_VSET(0.5f));
    return TMOEI_VSET(0.5f)
        + TMOEI_VMIN(TMOEI_VMAX(x * TMOEI_VSET(1e30f), -d), d); /* with the sign of x */
}

/* ---- matrix products ---- */

/* Writes one vector of a finished tile, of which `columns` numbers lie inside the matrix. */
TMOEI_KERNEL inline void TMOEI_FN(store)(float *c, TMOEI_V x, int add, int columns)
{
    const int left = columns < TMOEI_VW ? columns : TMOEI_VW, at = 0;
    if (columns <= 0) return;
    if (add) x = x + TMOEI_VREAD(c);
    TMOEI_VWRITE(c, x);
}

TMOEI_HEIGHTS(TMOEI_MICRO)
static tmoei_micro_fn *const TMOEI_FN(micro)[] = { NULL, TMOEI_HEIGHTS(TMOEI_MICRO_NAME) };

TMOEI_KERNEL float TMOEI_FN(dot)(const float *a, const float *b, size_t n)
{
    const size_t four = 4 * TMOEI_VW;
    TMOEI_V s0 = TMOEI_VSET(0.0f), s1 = s0, s2 = s0, s3 = s0;
    while (n >= four) {
        s0 = TMOEI_VFMA(TMOEI_VLOAD(a), TMOEI_VLOAD(b), s0);
        s1 = TMOEI_VFMA(TMOEI_VLOAD(a + TMOEI_VW), TMOEI_VLOAD(b + TMOEI_VW), s1);
        s2 = TMOEI_VFMA(TMOEI_VLOAD(a + 2 * TMOEI_VW), TMOEI_VLOAD(b + 2 * TMOEI_VW), s2);
        s3 = TMOEI_VFMA(TMOEI_VLOAD(a + 3 * TMOEI_VW), TMOEI_VLOAD(b + 3 * TMOEI_VW), s3);
        a += four;
        b += four;
        n -= four;
    }
    TMOEI_EACH(n, s0 = TMOEI_VFMA(TMOEI_VREAD(a), TMOEI_VREAD(b), s0));
    return TMOEI_FN(vsum)(s0 + s1 + (s2 + s3));
}

TMOEI_DOT_HEIGHTS(TMOEI_DOTS)
static tmoei_dots_fn *const TMOEI_FN(dots_of)[] = { NULL, TMOEI_DOT_HEIGHTS(TMOEI_DOTS_NAME) };

/* One long row a: b's rows in the order of memory. The first lines of the sixth row ahead start the
 * processor's own prefetching. */
TMOEI_KERNEL void TMOEI_FN(
    dots_long)(const tmoei_matrix *a, const tmoei_matrix *b, const tmoei_output *c)
{
    for (int n = 0; n < b->rows; n++) {
        const float *row = b->x + (size_t)n * b->stride;
        const float *sixth = row + 6 * b->stride;
        for (size_t at = 0; at < 8 * TMOEI_LINE; at += TMOEI_LINE) TMOEI_PREFETCH_L2(sixth + at);
        const float sum = TMOEI_FN(dot)(a->x, row, (size_t)a->cols);
        c->x[n] = (c->beta != 0.0f ? c->x[n] : 0.0f) + sum;
    }
}

/* Rows of a: as many at a time as the registers allow, but four where they compete for one set of
 * L1 (b takes the other half of it). Columns: so many that the rows of a stay in L1. */
TMOEI_KERNEL void TMOEI_FN(
    dots)(const tmoei_matrix *a, const tmoei_matrix *b, const tmoei_output *c)
{
    if (a->rows == 1 && a->cols >= TMOEI_DOT_LONG) {
        TMOEI_FN(dots_long)(a, b, c);
        return;
    }

    const int heights = (int)(sizeof TMOEI_FN(dots_of) / sizeof *TMOEI_FN(dots_of)) - 1;
    const int most = a->stride % TMOEI_SET_STRIDE == 0 ? 4 : heights;
    const int panels = (a->rows + most - 1) / most;
    const int height = (a->rows + panels - 1) / panels;
    const int depth = TMOEI_DOT_L1 / TMOEI_LINE / height * TMOEI_LINE;
    if (height == a->rows && depth >= a->cols) {
        TMOEI_FN(dots_of)[height](a, b, c);
        return;
    }

    for (int k = 0; k < a->cols; k += depth) {
        const int kc = a->cols - k < depth ? a->cols - k : depth;
        const tmoei_matrix columns = tmoei_window(b, 0, k, b->rows, kc);
        for (int m = 0; m < a->rows; m += height) {
            const int n = a->rows - m < height ? a->rows - m : height;
            const tmoei_matrix rows = tmoei_window(a, m, k, n, kc);
            const tmoei_output out =
                tmoei_output_of(c->x + (size_t)m * c->stride, c->stride, k > 0 ? 1.0f : c->beta);
            TMOEI_FN(dots_of)[n](&rows, &columns, &out);
        }
    }
}

#if TMOEI_PASS >= 2
#define TMOEI_PAIR(i) \
    _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(s + (i)*stride)), \
        _mm_loadu_ps(s + ((i) + 4) * stride), 1)

/* Four numbers of each of eight lines, through registers: d[x * width + y] = s[y * stride + x] */
TMOEI_KERNEL void TMOEI_FN(transpose8x4)(float *d, size_t width, const float *s, size_t stride)
{
    const __m256 r0 = TMOEI_PAIR(0), r1 = TMOEI_PAIR(1), r2 = TMOEI_PAIR(2), r3 = TMOEI_PAIR(3);
    const __m256 p = _mm256_unpacklo_ps(r0, r1), q = _mm256_unpacklo_ps(r2, r3);
    const __m256 t = _mm256_unpackhi_ps(r0, r1), u = _mm256_unpackhi_ps(r2, r3);
    _mm256_storeu_ps(d, _mm256_shuffle_ps(p, q, 0x44));
    _mm256_storeu_ps(d + width, _mm256_shuffle_ps(p, q, 0xee));
    _mm256_storeu_ps(d + 2 * width, _mm256_shuffle_ps(t, u, 0x44));
    _mm256_storeu_ps(d + 3 * width, _mm256_shuffle_ps(t, u, 0xee));
}

#undef TMOEI_PAIR
#endif

/* Eight rows at a time, a cache line of each. Of long rows the next line and what lies behind the
 * last row are prefetched. */
TMOEI_KERNEL void TMOEI_FN(transpose)(float *dst, size_t width, const tmoei_matrix *src)
{
    const size_t stride = src->stride;
    int done_rows = 0, done_cols = 0;
#if TMOEI_PASS >= 2
    done_rows = src->rows / 8 * 8;
    done_cols = src->cols / 4 * 4;
    for (int from = 0; from < done_cols; from += TMOEI_LINE) {
        const int to = done_cols - from < TMOEI_LINE ? done_cols : from + TMOEI_LINE;
        for (int row = 0; row < done_rows; row += 8) {
            const float *s = src->x + (size_t)row * stride;
            float *d = dst + (size_t)row;
            if (src->cols > TMOEI_TRANSPOSE_LONG) {
                for (size_t i = 0; i < 8; i++) {
                    TMOEI_PREFETCH(s + i * stride + from + 2 * TMOEI_LINE);
                    TMOEI_PREFETCH_L2(s + (i + (size_t)src->rows) * stride + from);
                }
            }
            for (int col = from; col < to; col += 4)
                TMOEI_FN(transpose8x4)(d + (size_t)col * width, width, s + col, stride);
        }
    }
#endif
    for (int row = 0; row < src->rows; row++) { /* the rest of each row, and the last rows */
        const float *s = src->x + (size_t)row * stride;
        for (int col = row < done_rows ? done_cols : 0; col < src->cols; col++)
            dst[(size_t)col * width + (size_t)row] = s[col];
    }
}

TMOEI_KERNEL void TMOEI_FN(epilogue)(const tmoei_epilogue *e, float *c, size_t stride, int row,
    int column, int rows, int columns)
{
    const float *bias = e->bias ? e->bias + column : NULL;
    for (int r = 0; r < rows; r++) {
        const size_t line = (size_t)(row + r), first = (size_t)column;
        const float *residual = NULL;
        float *pre = NULL, *y = c + (size_t)r * stride;
        if (e->pre) pre = e->pre + line * e->pre_stride + first;
        if (e->residual) residual = e->residual + line * e->residual_stride + first;
        TMOEI_EACH((size_t)columns, {
            TMOEI_V z = TMOEI_VREAD(y);
            if (bias) z = z + TMOEI_VREAD(bias);
            if (pre) TMOEI_VWRITE(pre, z);
            if (e->activation == TMOE_GELU)
                z = TMOEI_FN(vgelu)(z);
            else if (e->activation == TMOE_RELU)
                z = TMOEI_VMAX(z, TMOEI_VSET(0.0f));
            if (residual) z = z + TMOEI_VREAD(residual);
            TMOEI_VWRITE(y, z);
        });
    }
}

/* ---- rows of numbers ---- */

TMOEI_KERNEL void TMOEI_FN(gelu)(float *y, const float *dy, const float *x, size_t n)
{
    if (dy)
        TMOEI_EACH(n,
            TMOEI_VWRITE(y, TMOEI_VREAD(dy) * TMOEI_FN(vgelu_derivative)(TMOEI_VREAD(x))));
    else
        TMOEI_EACH(n, TMOEI_VWRITE(y, TMOEI_FN(vgelu)(TMOEI_VREAD(x))));
}

TMOEI_KERNEL float TMOEI_FN(sum)(const float *x, size_t n)
{
    TMOEI_V s = TMOEI_VSET(0.0f);
    TMOEI_EACH(n, s = s + TMOEI_VREAD(x));
    return TMOEI_FN(vsum)(s);
}

TMOEI_KERNEL float TMOEI_FN(maximum)(const float *x, size_t n)
{
    TMOEI_V most = TMOEI_VSET(x[0]);
    size_t at = 0;
    for (; at + TMOEI_VW <= n; at += TMOEI_VW) most = TMOEI_VMAX(most, TMOEI_VLOAD(x + at));
    float best = TMOEI_FN(vmaximum)(most);
    for (; at < n; at++)
        if (x[at] > best) best = x[at];
    return best;
}

TMOEI_KERNEL void TMOEI_FN(scale_add)(float *y, float beta, float a, const float *x, size_t n)
{
    TMOEI_V scale = TMOEI_VSET(a), keep = TMOEI_VSET(beta);
    if (beta == 0.0f)
        TMOEI_EACH(n, TMOEI_VWRITE(y, scale * TMOEI_VREAD(x)));
    else
        TMOEI_EACH(n, TMOEI_VWRITE(y, TMOEI_VFMA(scale, TMOEI_VREAD(x), keep * TMOEI_VREAD(y))));
}

TMOEI_KERNEL float TMOEI_FN(exp_sum)(float *y, const float *x, float scale, float shift, size_t n)
{
    TMOEI_V a = TMOEI_VSET(scale), b = TMOEI_VSET(-shift);
    TMOEI_V sum = TMOEI_VSET(0.0f);
    TMOEI_EACH(n, {
        TMOEI_V e = TMOEI_FN(vexp)(TMOEI_VFMA(a, TMOEI_VREAD(x), b));
        if (y) TMOEI_VWRITE(y, e);
        TMOEI_VCUT(e); /* of the places beyond n: zeros, not exp(-shift) */
        sum = sum + e;
    });
    return TMOEI_FN(vsum)(sum);
}

TMOEI_KERNEL void TMOEI_FN(softmax_gradient)(float *dx, const float *x, float log_sum_exp,
    float shift, float weight, size_t n)
{
    TMOEI_V l = TMOEI_VSET(log_sum_exp), s = TMOEI_VSET(shift), w = TMOEI_VSET(weight);
    TMOEI_EACH(n, TMOEI_VWRITE(dx, w * (TMOEI_FN(vexp)(TMOEI_VREAD(x) - l) - s)));
}

TMOEI_KERNEL void TMOEI_FN(softmax_backward)(float *s, float *dp, const float *lse,
    const float *delta, float scale, size_t n)
{
    TMOEI_V w = TMOEI_VSET(scale);
    TMOEI_EACH(n, {
        TMOEI_V p = TMOEI_FN(vexp)(w * TMOEI_VREAD(s) - TMOEI_VREAD(lse));
        TMOEI_VWRITE(s, p);
        TMOEI_VWRITE(dp, w * p * (TMOEI_VREAD(dp) - TMOEI_VREAD(delta)));
    });
}

/* First the mean, then the variance around it: one sweep for both would cancel digits. */
TMOEI_KERNEL void TMOEI_FN(norm_forward)(float *y, const float *x, const float *gain,
    const float *bias, float epsilon, float *mean, float *inv, size_t n)
{
    const float m = TMOEI_FN(sum)(x, n) / (float)n;
    TMOEI_V vm = TMOEI_VSET(m);
    TMOEI_V s = TMOEI_VSET(0.0f);
    TMOEI_EACH(n, {
        TMOEI_V d = TMOEI_VREAD(x) - vm;
        TMOEI_VCUT(d);
        s = TMOEI_VFMA(d, d, s);
    });
    *mean = m;
    *inv = 1.0f / sqrtf(TMOEI_FN(vsum)(s) / (float)n + epsilon);
    TMOEI_V vi = TMOEI_VSET(*inv);
    TMOEI_EACH(n,
        TMOEI_VWRITE(y,
            TMOEI_VFMA((TMOEI_VREAD(x) - vm) * vi, TMOEI_VREAD(gain), TMOEI_VREAD(bias))));
}

TMOEI_KERNEL void TMOEI_FN(norm_backward)(float *dx, float beta, const float *x, const float *dy,
    const float *gain, float mean, float inv, size_t n)
{
    TMOEI_V vm = TMOEI_VSET(mean), vi = TMOEI_VSET(inv);
    TMOEI_V sg = TMOEI_VSET(0.0f), sx = TMOEI_VSET(0.0f);
    TMOEI_EACH(n, {
        TMOEI_V g = TMOEI_VREAD(gain) * TMOEI_VREAD(dy);
        sg = sg + g;
        sx = TMOEI_VFMA(g, (TMOEI_VREAD(x) - vm) * vi, sx);
    });
    TMOEI_V mg = TMOEI_VSET(TMOEI_FN(vsum)(sg) / (float)n);
    TMOEI_V mx = TMOEI_VSET(TMOEI_FN(vsum)(sx) / (float)n);
    TMOEI_EACH(n, {
        TMOEI_V g = TMOEI_VREAD(gain) * TMOEI_VREAD(dy);
        TMOEI_V xhat = (TMOEI_VREAD(x) - vm) * vi;
        TMOEI_V d = vi * (g - mg - xhat * mx);
        if (beta != 0.0f) d = d + TMOEI_VREAD(dx);
        TMOEI_VWRITE(dx, d);
    });
}

TMOEI_KERNEL void TMOEI_FN(norm_parameters)(float *dgain, float *dbias, const float *x,
    const float *dy, float mean, float inv, size_t n)
{
    TMOEI_V vm = TMOEI_VSET(mean), vi = TMOEI_VSET(inv);
    TMOEI_EACH(n, {
        TMOEI_V d = TMOEI_VREAD(dy);
        if (dgain)
            TMOEI_VWRITE(dgain, TMOEI_VFMA(d, (TMOEI_VREAD(x) - vm) * vi, TMOEI_VREAD(dgain)));
        if (dbias) TMOEI_VWRITE(dbias, TMOEI_VREAD(dbias) + d);
    });
}

/* y = sum of r_e theta_e over up to four experts, added to y where `add` is set */
TMOEI_KERNEL inline void TMOEI_FN(merge_four)(float *y, int add, const float *theta, size_t stride,
    const float *r, int experts, size_t n)
{
    const float *t0 = theta;
    const float *t1 = experts > 1 ? t0 + stride : t0;
    const float *t2 = experts > 2 ? t1 + stride : t0;
    const float *t3 = experts > 3 ? t2 + stride : t0;
    TMOEI_V r0 = TMOEI_VSET(r[0]);
    TMOEI_V r1 = TMOEI_VSET(experts > 1 ? r[1] : 0.0f);
    TMOEI_V r2 = TMOEI_VSET(experts > 2 ? r[2] : 0.0f);
    TMOEI_V r3 = TMOEI_VSET(experts > 3 ? r[3] : 0.0f);
    TMOEI_EACH(n, {
        TMOEI_V s = add ? TMOEI_VREAD(y) : TMOEI_VSET(0.0f);
        s = TMOEI_VFMA(r0, TMOEI_VREAD(t0), s);
        s = TMOEI_VFMA(r1, TMOEI_VREAD(t1), s);
        s = TMOEI_VFMA(r2, TMOEI_VREAD(t2), s);
        TMOEI_VWRITE(y, TMOEI_VFMA(r3, TMOEI_VREAD(t3), s));
    });
}

/* Short lines are a product of one row. Long ones take four experts a sweep, in pieces whose sums
 * stay in L1. The two round differently, so n must not depend on the lanes. */
TMOEI_KERNEL void TMOEI_FN(merge)(float *out, int more, const float *theta, size_t stride,
    const float *r, int experts, size_t n)
{
    size_t done = 0;
    if (n <= TMOEI_MERGE_SHORT) {
        const tmoei_panel route = { r, 0, 1 };
        tmoei_output sums = tmoei_output_of(out, 0, more ? 1.0f : 0.0f);
        while (done + TMOEI_NR <= n) {
            TMOEI_FN(micro1)(experts, &route, theta + done, stride, &sums, TMOEI_NR);
            sums.x += TMOEI_NR;
            done += TMOEI_NR;
        }
    }

    for (size_t from = done; from < n; from += TMOEI_MERGE_SUMS) {
        const size_t m = tmoei_least_size(n - from, TMOEI_MERGE_SUMS);
        for (int e = 0; e < experts; e += 4) {
            const float *lines = theta + (size_t)e * stride + from;
            /* short lines end before the processor prefetches: touch some of the next ones */
            if (m <= TMOEI_MERGE_UNSEEN && experts - e > 7) {
                for (size_t at = 0; at < m; at += 4 * TMOEI_LINE)
                    for (size_t i = 4; i < 8; i++) TMOEI_PREFETCH_L2(lines + i * stride + at);
            }
            TMOEI_FN(merge_four)(out + from, more || e > 0, lines, stride, r + e, experts - e, m);
        }
    }
}

/* The expert that is read next lies too far away for the processor's prefetching. */
TMOEI_KERNEL void TMOEI_FN(merge_backward)(tmoei_merge_lines *lines, size_t n)
{
    float *dtheta = lines->dtheta;
    const float *theta = lines->theta, *first = lines->first;
    const ptrdiff_t next = lines->next;
    const float *g = lines->g;
    const float *g1 = lines->tasks > 1 ? g + lines->stride : g;
    const float *g2 = lines->tasks > 2 ? g1 + lines->stride : g;
    const float *g3 = lines->tasks > 3 ? g2 + lines->stride : g;
    TMOEI_V r0 = TMOEI_VSET(lines->r[0]), r1 = TMOEI_VSET(lines->r[1]);
    TMOEI_V r2 = TMOEI_VSET(lines->r[2]), r3 = TMOEI_VSET(lines->r[3]);
    TMOEI_V s0 = TMOEI_VSET(0.0f), s1 = s0, s2 = s0, s3 = s0;
    TMOEI_EACH(n, {
        TMOEI_V d = TMOEI_VREAD(theta) - TMOEI_VREAD(first);
        if (TMOEI_VW > 1) TMOEI_PREFETCH_L2(theta + next + at);
        if (TMOEI_VW > 1 && dtheta) TMOEI_PREFETCH_L2(dtheta + next + at);
        TMOEI_V x0 = TMOEI_VREAD(g), x1 = TMOEI_VREAD(g1);
        TMOEI_V x2 = TMOEI_VREAD(g2), x3 = TMOEI_VREAD(g3);
        if (dtheta) {
            TMOEI_V sum = TMOEI_VFMA(r3, x3, TMOEI_VREAD(dtheta));
            sum = TMOEI_VFMA(r2, x2, sum);
            sum = TMOEI_VFMA(r1, x1, sum);
            TMOEI_VWRITE(dtheta, TMOEI_VFMA(r0, x0, sum));
        }
        s0 = TMOEI_VFMA(x0, d, s0);
        s1 = TMOEI_VFMA(x1, d, s1);
        s2 = TMOEI_VFMA(x2, d, s2);
        s3 = TMOEI_VFMA(x3, d, s3);
    });
    TMOEI_VSUM4(lines->dots, s0, s1, s2, s3);
}

TMOEI_KERNEL void TMOEI_FN(adamw)(float *theta, const float *grad, float *m, float *v, size_t n,
    const tmoei_adamw_constants *constants)
{
    TMOEI_V scale = TMOEI_VSET(constants->scale);
    TMOEI_V b1 = TMOEI_VSET(constants->beta1), b2 = TMOEI_VSET(constants->beta2);
    TMOEI_V d1 = TMOEI_VSET(1.0f - constants->beta1), d2 = TMOEI_VSET(1.0f - constants->beta2);
    TMOEI_V c1 = TMOEI_VSET(constants->correction1), c2 = TMOEI_VSET(constants->correction2);
    TMOEI_V eps = TMOEI_VSET(constants->epsilon);
    TMOEI_V lr = TMOEI_VSET(-constants->rate), keep = TMOEI_VSET(1.0f - constants->decay);
    TMOEI_EACH(n, {
        TMOEI_V g = scale * TMOEI_VREAD(grad);
        TMOEI_V m1 = TMOEI_VFMA(b1, TMOEI_VREAD(m), d1 * g);
        TMOEI_V v1 = TMOEI_VFMA(b2, TMOEI_VREAD(v), d2 * (g * g));
        TMOEI_V step = m1 * c1 / (TMOEI_VSQRT(v1 * c2) + eps);
        TMOEI_VWRITE(m, m1);
        TMOEI_VWRITE(v, v1);
        TMOEI_VWRITE(theta, TMOEI_VFMA(lr, step, keep * TMOEI_VREAD(theta)));
    });
}

/* hash: the finaliser of MurmurHash3 on the counter */
TMOEI_KERNEL void TMOEI_FN(dropout)(float *y, const float *x, size_t n, uint32_t first,
    uint32_t key, uint32_t limit, float scale)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t h = ((uint32_t)i + first) * 0x9e3779b1u ^ key;
        h = (h ^ (h >> 16)) * 0x85ebca6bu;
        h = (h ^ (h >> 13)) * 0xc2b2ae35u;
        h ^= h >> 16;
        y[i] = h >= limit ? x[i] * scale : 0.0f;
    }
}

/* Pairs (a, b), turned by angles of the cosines c and the sines s. */
TMOEI_KERNEL inline void TMOEI_FN(turn)(TMOEI_V *a, TMOEI_V *b, TMOEI_V c, TMOEI_V s)
{
    TMOEI_V before = *a;
    *a = TMOEI_VFMA(before, c, -(*b * s));
    *b = TMOEI_VFMA(*b, c, before * s);
}

/* The last vector of a head is whole, too, and overlaps the one before: it is read before anything
 * is written. With masked stores heads of 24 floats take 2.2 (AVX-512) and 3.7 times (AVX2). */
TMOEI_KERNEL void TMOEI_FN(rotary)(float *y, const float *x, const float *table, float direction,
    size_t half, size_t heads)
{
#if TMOEI_PASS == 3 && !defined(TMOE_NO_AVX2)
    if (half < TMOEI_VW) { /* shorter vectors may still be whole */
        tmoei_rotary_avx2(y, x, table, direction, half, heads);
        return;
    }
#endif
    TMOEI_V d = TMOEI_VSET(direction);
    const float *sines = table + half;
    for (size_t head = 0; head < heads; head++) {
        const float *first = x + 2 * half * head, *second = first + half;
        float *to = y + 2 * half * head;
        if (half < TMOEI_VW) {
            TMOEI_EACH(half, {
                TMOEI_V a = TMOEI_VREAD(first), b = TMOEI_VREAD(second);
                TMOEI_FN(turn)(&a, &b, TMOEI_VREAD(table), d * TMOEI_VREAD(sines));
                TMOEI_VWRITE(to, a);
                TMOEI_VWRITE(to + half, b);
            });
            continue;
        }

        const size_t last = half - TMOEI_VW;
        TMOEI_V a_last = TMOEI_VLOAD(first + last), b_last = TMOEI_VLOAD(second + last);
        TMOEI_FN(turn)(&a_last, &b_last, TMOEI_VLOAD(table + last), d * TMOEI_VLOAD(sines + last));
        for (size_t at = 0; at < last; at += TMOEI_VW) {
            TMOEI_V a = TMOEI_VLOAD(first + at), b = TMOEI_VLOAD(second + at);
            TMOEI_FN(turn)(&a, &b, TMOEI_VLOAD(table + at), d * TMOEI_VLOAD(sines + at));
            TMOEI_VSTORE(to + at, a);
            TMOEI_VSTORE(to + half + at, b);
        }
        TMOEI_VSTORE(to + last, a_last);
        TMOEI_VSTORE(to + half + last, b_last);
    }
}

static const tmoei_kernels TMOEI_FN(kernels) = { TMOEI_PICK("C", "NEON", "AVX2", "AVX-512"),
    TMOEI_MR, TMOEI_NR, TMOEI_FN(micro), TMOEI_KERNELS(TMOEI_KERNEL_ENTRY) };
#endif /* TMOEI_PASS */
#ifndef TMOEI_PASS

/* ---- the passes ---- */

#ifndef TMOE_HEADER_FILENAME
#define TMOE_HEADER_FILENAME "taskmoe.h" /* a program defines it where the file has another name */
#endif
#define TMOEI_PASS 0
#include TMOE_HEADER_FILENAME
#undef TMOEI_PASS
#ifdef TMOEI_ARM
#define TMOEI_PASS 1
#include TMOE_HEADER_FILENAME
#undef TMOEI_PASS
#endif
#if defined(TMOEI_X86) && !defined(TMOE_NO_AVX2)
#define TMOEI_PASS 2
#include TMOE_HEADER_FILENAME
#undef TMOEI_PASS
#endif
#if defined(TMOEI_X86) && !defined(TMOE_NO_AVX512)
#define TMOEI_PASS 3
#include TMOE_HEADER_FILENAME
#undef TMOEI_PASS
#endif

/* Returns the kernels of `wanted`, of the best set that the processor has (AUTO), or plain C where
 * the processor lacks what is wanted. */
static const tmoei_kernels *tmoei_kernels_choose(tmoe_isa wanted)
{
    const int any = wanted == TMOE_ISA_AUTO;
#if defined(TMOEI_X86) && !defined(TMOE_NO_AVX512)
    if ((any || wanted == TMOE_ISA_AVX512) && tmoei_isa_best() == TMOE_ISA_AVX512)
        return &tmoei_kernels_avx512;
#endif
#if defined(TMOEI_X86) && !defined(TMOE_NO_AVX2)
    if ((any || wanted == TMOE_ISA_AVX2) && tmoei_isa_best() >= TMOE_ISA_AVX2)
        return &tmoei_kernels_avx2;
#endif
#ifdef TMOEI_ARM
    if (any || wanted == TMOE_ISA_NEON) return &tmoei_kernels_neon; /* part of every AArch64 */
#endif
    (void)any;
    return &tmoei_kernels_c;
}

/* ==== >>products: the matrix product driver, and products of one lane ============================
 * C (M,N) = beta C + A (M,K) B (K,N), by the five loops of a packed product (Goto and van de Geijn
 * 2008), from the outermost to the innermost:
 *   1  blocks of at most NC columns of B and C         tmoei_product_blocks
 *   2  pieces of K, at most KC                         there, or in the tiles: see there
 *   3  tiles of C, each computed by one lane           tmoei_product_tile_chunk
 *   4  panels of B inside the tile, NR columns each    tmoei_tile_add
 *   5  panels of A inside the tile, `height` rows      there; the body is the micro-kernel
 * B is packed before loop 3 by all lanes together, or in loop 3 by the lane that reads it, or read
 * in place. A is packed in loop 3 by the lane that reads it, or read in place. The epilogue follows
 * a tile's last piece of K.
 *
 * Kernels of 14 rows read A and B in place, but for a transposed B: they meet a row so rarely that
 * L2 is fast enough. But rows a multiple of TMOEI_SET_STRIDE apart compete for a few places of L1:
 * such rows of A are copied side by side where that pays, and such a B is packed. Smaller kernels
 * read a transposed A or a B in place only if it is small. */

/* K is cut into equal pieces of at most KC, so the order of a sum is the same on every machine. A
 * packed panel of B is then 48 KiB; pieces of 256 and 512 are slower. */
#define TMOEI_KC 384
#define TMOEI_NC 2048            /* most columns of B packed at once: 3 MiB */
#define TMOEI_TILE_COLUMNS 256   /* most columns of a tile whose lane packs */
#define TMOEI_LANE_ROWS 64       /* most rows of A that a lane packs at once */
#define TMOEI_LANE_PACKS_ROWS 32 /* rows for each lane from which on a lane packs its own B */
#define TMOEI_PACK_COLUMNS 64    /* columns of B in a chunk of packing */
#define TMOEI_ONE_JOB 32768      /* elements of C for each lane up to which K is one job */
#define TMOEI_IN_PLACE_A 128     /* smaller kernels: most stride of a transposed A in place */
#define TMOEI_IN_PLACE_B 65536   /* smaller kernels: most elements of a B in place */
#define TMOEI_COPIED_A 512       /* columns of C from which on competing rows of A are copied */
#define TMOEI_FEW_ROWS 8         /* most rows of A for which B^T is not packed */
#define TMOEI_FEW_ROWS_PLAIN 3   /* the same for B */
#define TMOEI_FEW_COLUMNS 512    /* a chunk of few rows: columns of B ... */
#define TMOEI_FEW_PRODUCTS 16384 /* ... or so many products with a row of B^T */
#define TMOEI_SCORES 65536       /* attention scores that a lane holds, twice; also the most keys */

/* Floats of one k in a packed panel of A: 8 for 5 rows at worst. */
#define TMOEI_PANEL_WIDTH(rows) (((rows) + 3) / 4 * 4)

/* Scratch of all lanes together: packed B; of each lane: packed B, packed A, scores. */
#define TMOEI_SHARED_FLOATS ((size_t)TMOEI_KC * (TMOEI_NC + TMOEI_NR_MAX))
#define TMOEI_LANE_B_FLOATS ((size_t)TMOEI_KC * (TMOEI_TILE_COLUMNS + TMOEI_NR_MAX))
#define TMOEI_LANE_A_FLOATS ((size_t)TMOEI_KC * (TMOEI_LANE_ROWS * 8 / 5))
#define TMOEI_LANE_FLOATS (2 * (size_t)TMOEI_SCORES + TMOEI_LANE_B_FLOATS + TMOEI_LANE_A_FLOATS)

/* Measured costs of a tile besides its sums, in register tiles. */
#define TMOEI_COST_PACK_B 8.4f /* for each panel, in rows of a register tile */
#define TMOEI_COST_READ_B 2.8f
#define TMOEI_COST_PACK_A 0.3f /* for each panel */
#define TMOEI_COST_READ_A 0.1f
#define TMOEI_COST_BEGIN 0.5f
#define TMOEI_COST_UNEVEN 0.2f /* of a tile, for lanes never end together */

/* The number of pieces of at most `size` that `total` is cut into. */
static int tmoei_pieces(int total, int size)
{
    return (total + size - 1) / size;
}

typedef struct tmoei_product {
    const tmoe_ctx *ctx;
    const tmoei_matrix *a, *b;
    const tmoei_output *c;
    const tmoei_epilogue *epilogue; /* or NULL */
    int M, N, K;

    /* the plan */
    int depth;  /* of a piece of K */
    int height; /* rows of a panel of A */
    int tile_rows, tile_columns;
    int a_in_place, b_in_place; /* not packed */
    float *packed_b;            /* by all lanes, or NULL */
    int kept, pack;             /* packed_b outlives the product; has to be filled */

    /* the block in work: nc columns from n0 on, k0 <= k < k1 */
    int n0, nc, k0, k1;
    int column_tiles;
    size_t packed_width; /* floats of packed_b for one k; 0: each piece of K begins at packed_b */
} tmoei_product;

static void tmoei_product_plan(tmoei_product *p, const tmoe_ctx *ctx, const tmoei_matrix *a,
    const tmoei_matrix *b, const tmoei_output *c)
{
    memset(p, 0, sizeof *p);
    p->ctx = ctx;
    p->a = a;
    p->b = b;
    p->c = c;
    p->M = a->rows;
    p->N = b->cols;
    p->K = a->cols;
    p->pack = 1;
    if (p->M <= 0 || p->N <= 0 || p->K <= 0) return;

    const int high = ctx->kernels->mr == TMOEI_MR_MAX;
    const int compete = high && !a->transposed && a->stride % TMOEI_SET_STRIDE == 0;
    const int copied = compete && p->N >= TMOEI_COPIED_A && p->M > TMOEI_LANE_ROWS
        && (!b->transposed || ctx->lanes == 1);
    const int most = compete && !copied ? 7 : ctx->kernels->mr; /* 7 fit into a set of 8 lines */
    p->height = tmoei_pieces(p->M, tmoei_pieces(p->M, most));
    p->depth = (tmoei_pieces(p->K, tmoei_pieces(p->K, TMOEI_KC)) + 7) / 8 * 8;

    p->a_in_place = !copied;
    if (a->transposed) p->a_in_place = high || a->stride <= TMOEI_IN_PLACE_A;
    if (!b->transposed && high) p->b_in_place = !compete || b->stride % TMOEI_SET_STRIDE != 0;
    if (!b->transposed && !high) p->b_in_place = (size_t)p->N * (size_t)p->K <= TMOEI_IN_PLACE_B;
}

/* Packs m (n, K) into panels of `panel` rows, stored k by k, `width` floats each. The last one is
 * filled up with zeros. m is read in the order of memory. */
static void tmoei_pack_panels(const tmoe_ctx *ctx, float *out, const tmoei_matrix *m, int panel,
    size_t width)
{
    const size_t rows = (size_t)m->rows, depth = (size_t)m->cols, step = (size_t)panel;
    const size_t size = width * depth; /* of a panel */
    if (rows % step) memset(out + rows / step * size, 0, size * sizeof(float));
    if (!m->transposed) {
        for (int i = 0; i < m->rows; i += panel) {
            const int n = tmoei_least(panel, m->rows - i);
            const tmoei_matrix lines = tmoei_window(m, i, 0, n, m->cols);
            ctx->kernels->transpose(out, width, &lines);
            out += size;
        }
        return;
    }
    for (size_t k = 0; k < depth; k++) {
        const float *line = m->x + k * m->stride;
        float *d = out + k * width;
        size_t j = 0;
        for (; j + width <= rows; j += step) {
            const float *ahead = line + 8 * m->stride + j;
            for (size_t i = 0; i < width; i += TMOEI_LINE) TMOEI_PREFETCH(ahead + i);
            for (size_t i = 0; i < width; i += 4) memcpy(d + i, line + j + i, 4 * sizeof(float));
            d += size;
        }
        for (; j < rows; j += step) {
            memcpy(d, line + j, tmoei_least_size(rows - j, step) * sizeof(float));
            d += size;
        }
    }
}

/* Packs n columns of B from column `from` of the block on, kc of K from k0 on. */
static void tmoei_product_pack_b(const tmoei_product *p, float *out, int from, int n, int k0,
    int kc)
{
    const int nr = p->ctx->kernels->nr;
    const tmoei_matrix columns = tmoei_transposed(tmoei_window(p->b, k0, p->n0 + from, kc, n));
    tmoei_pack_panels(p->ctx, out, &columns, nr, (size_t)nr);
}

static void tmoei_product_pack_chunk(void *arg, int chunk, int lane)
{
    const tmoei_product *p = (const tmoei_product *)arg;
    const int pieces = tmoei_pieces(p->nc, TMOEI_PACK_COLUMNS);
    const int from = chunk % pieces * TMOEI_PACK_COLUMNS;
    const int k0 = p->k0 + chunk / pieces * p->depth;
    const int kc = tmoei_least(p->k1 - k0, p->depth);
    float *out = p->packed_b + (size_t)k0 * p->packed_width + (size_t)from * (size_t)kc;
    (void)lane;
    tmoei_product_pack_b(p, out, from, tmoei_least(TMOEI_PACK_COLUMNS, p->nc - from), k0, kc);
}

/* A lane's tile: rows i0 .. i1 - 1 of C, columns j0 .. j1 - 1 of the block. */
typedef struct tmoei_tile {
    int i0, i1, j0, j1;
    int packed;           /* columns of B from here on are packed, those before are read in place */
    float *own_a, *own_b; /* the lane's scratch */
} tmoei_tile;

/* What the micro-kernels read of A in this piece of K, packed if need be; *next: floats from panel
 * to panel. */
static tmoei_panel tmoei_tile_a(const tmoei_product *p, const tmoei_tile *t, int k0, int kc,
    size_t *next)
{
    const tmoei_matrix m = tmoei_window(p->a, t->i0, k0, t->i1 - t->i0, kc);
    const size_t height = (size_t)p->height, depth = (size_t)kc;
    tmoei_panel a = { p->a_in_place ? m.x : t->own_a, 1, 1 };
    if (p->a_in_place && m.transposed) {
        a.step = m.stride;
        *next = height;
    } else if (p->a_in_place) {
        a.row = m.stride;
        *next = height * m.stride;
    } else if (m.transposed) {
        a.step = TMOEI_PANEL_WIDTH(height);
        *next = a.step * depth;
        tmoei_pack_panels(p->ctx, t->own_a, &m, p->height, a.step);
    } else { /* copied side by side */
        a.row = depth;
        *next = height * depth;
        for (size_t i = 0; i < (size_t)m.rows; i++)
            memcpy(t->own_a + i * depth, m.x + i * m.stride, depth * sizeof(float));
    }
    return a;
}

/* Adds one piece of K to the tile: loops 4 and 5. */
static void tmoei_tile_add(const tmoei_product *p, const tmoei_tile *t, int k0, int kc)
{
    const tmoei_kernels *kernels = p->ctx->kernels;
    const size_t depth = (size_t)kc, nr = (size_t)kernels->nr;
    size_t a_next;
    const tmoei_panel a = tmoei_tile_a(p, t, k0, kc, &a_next);

    const float *packed_b = t->own_b;
    if (p->packed_b)
        packed_b = p->packed_b + (size_t)k0 * p->packed_width + (size_t)t->packed * depth;
    else if (t->packed < t->j1)
        tmoei_product_pack_b(p, t->own_b, t->packed, t->j1 - t->packed, k0, kc);

    /* kept panels stream from memory: each panel of A prefetches its part of B's next panel */
    const int panels = tmoei_pieces(t->i1 - t->i0, p->height);
    const size_t part = p->kept ? nr * depth / (size_t)panels : 0;
    tmoei_output c = tmoei_output_of(p->c->x, p->c->stride, k0 > 0 ? 1.0f : p->c->beta);

    for (int j = t->j0; j < t->j1; j += kernels->nr) {
        const int in_place = j < t->packed;
        const size_t ldb = in_place ? p->b->stride : nr;
        const float *b = in_place ? tmoei_window(p->b, k0, p->n0 + j, kc, kernels->nr).x
                                  : packed_b + (size_t)(j - t->packed) * depth;
        const float *b_next = b + nr * depth;
        tmoei_panel rows = a;
        for (int i = t->i0; i < t->i1; i += p->height) {
            for (size_t at = 0; at < part; at += TMOEI_LINE) TMOEI_PREFETCH(b_next + at);
            c.x = p->c->x + (size_t)i * c.stride + (size_t)p->n0 + (size_t)j;
            kernels->micro[tmoei_least(t->i1 - i, p->height)](kc, &rows, b, ldb, &c, p->nc - j);
            rows.x += a_next;
            b_next += part;
        }
    }
}

static void tmoei_product_tile_chunk(void *arg, int chunk, int lane)
{
    const tmoei_product *p = (const tmoei_product *)arg;
    const int nr = p->ctx->kernels->nr;
    const int tile_row = chunk / p->column_tiles, tile_column = chunk % p->column_tiles;
    tmoei_tile t;
    t.i0 = tile_row * p->tile_rows;
    t.i1 = tmoei_least(t.i0 + p->tile_rows, p->M);
    t.j0 = tile_column * p->tile_columns;
    t.j1 = tmoei_least(t.j0 + p->tile_columns, p->nc);
    t.packed = t.j0;
    if (p->b_in_place) t.packed += (t.j1 - t.j0) / nr * nr; /* a part of a panel is packed */
    t.own_b = p->ctx->lane_scratch[lane];
    t.own_a = t.own_b + TMOEI_LANE_B_FLOATS;

    for (int k0 = p->k0; k0 < p->k1; k0 += p->depth)
        tmoei_tile_add(p, &t, k0, tmoei_least(p->k1 - k0, p->depth));
    if (p->epilogue && p->k1 == p->K) {
        const int column = p->n0 + t.j0;
        p->ctx->kernels->epilogue(p->epilogue,
            p->c->x + (size_t)t.i0 * p->c->stride + (size_t)column, p->c->stride, t.i0, column,
            t.i1 - t.i0, t.j1 - t.j0);
    }
}

/* Runs all chunks over the lanes of ctx, or on this lane where ctx is NULL. */
static void tmoei_product_run(tmoei_product *p, tmoei_chunk_fn *fn, int chunks, tmoe_ctx *ctx,
    int lane)
{
    if (ctx) {
        tmoei_parallel(ctx, fn, p, chunks);
        return;
    }
    for (int chunk = 0; chunk < chunks; chunk++) fn(p, chunk, lane);
}

/* Loops 1 and 2, in blocks of at most `columns`. A piece of K is a job for the lanes. Where C is so
 * small that a job for each piece would cost, and B's block fits, all of K is one job. */
static void tmoei_product_blocks(tmoei_product *p, int columns, tmoe_ctx *ctx, int lane)
{
    const int row_tiles = tmoei_pieces(p->M, p->tile_rows);
    for (p->n0 = 0; p->n0 < p->N; p->n0 += p->nc) {
        p->nc = tmoei_least(p->N - p->n0, columns);
        p->column_tiles = tmoei_pieces(p->nc, p->tile_columns);
        const size_t width = (size_t)p->nc + TMOEI_NR_MAX;
        const int whole = ctx && ctx->lanes > 1 && p->M <= TMOEI_ONE_JOB * ctx->lanes / p->nc
            && (!p->packed_b || p->kept || width * (size_t)p->K <= TMOEI_SHARED_FLOATS);
        p->packed_width = p->kept || whole ? width : 0;

        for (p->k0 = 0; p->k0 < p->K; p->k0 = p->k1) {
            p->k1 = whole ? p->K : tmoei_least(p->K, p->k0 + p->depth);
            if (p->packed_b && p->pack) {
                const int pieces = tmoei_pieces(p->k1 - p->k0, p->depth);
                tmoei_product_run(p, tmoei_product_pack_chunk,
                    tmoei_pieces(p->nc, TMOEI_PACK_COLUMNS) * pieces, ctx, lane);
            }
            tmoei_product_run(p, tmoei_product_tile_chunk, row_tiles * p->column_tiles, ctx, lane);
        }
    }
}

/* Few rows of A, B in place. */
static void tmoei_product_few_chunk(void *arg, int chunk, int lane)
{
    const tmoei_product *p = (const tmoei_product *)arg;
    const tmoei_kernels *kernels = p->ctx->kernels;
    const int j0 = chunk * p->tile_columns, columns = tmoei_least(p->N - j0, p->tile_columns);
    const tmoei_output c = tmoei_output_of(p->c->x + j0, p->c->stride, p->c->beta);
    (void)lane;
    const tmoei_matrix b = tmoei_window(p->b, 0, j0, p->K, columns);
    if (b.transposed) {
        const tmoei_matrix rows = tmoei_transposed(b);
        kernels->dots(p->a, &rows, &c);
    } else {
        for (size_t m = 0; m < (size_t)p->M; m++)
            kernels->merge(c.x + m * c.stride, c.beta != 0.0f, b.x, b.stride,
                p->a->x + m * p->a->stride, p->K, (size_t)columns);
    }
    if (p->epilogue) kernels->epilogue(p->epilogue, c.x, c.stride, 0, j0, p->M, columns);
}

/* Chooses the tiles' size. One lane: as large as the caches allow. Several: of all heights (equal
 * tiles of equal panels) and widths the one with which the busiest lane is done first:
 *   cost = (tiles of the busiest lane + UNEVEN) (b (sums + READ_B) + a READ_A + BEGIN)
 * for tiles of a panels of A and b panels of B, with PACK in place of READ where the lane packs. */
static void tmoei_product_tiles(tmoei_product *p)
{
    const int lanes = p->ctx->lanes, highest = p->height;
    const int unit = TMOEI_NR_MAX / p->ctx->kernels->nr; /* panels of B in the widest one's width */
    const int packs_b = !p->b_in_place && !p->packed_b;
    const int rows = tmoei_pieces(p->M, highest);
    const int columns = tmoei_pieces(tmoei_least(p->N, p->ctx->block_columns), TMOEI_NR_MAX);
    const int most_rows = (p->a_in_place ? p->ctx->tile_rows : TMOEI_LANE_ROWS) / highest;
    int most_columns = columns;
    if (p->a_in_place || packs_b)
        most_columns = tmoei_least(TMOEI_TILE_COLUMNS / TMOEI_NR_MAX, columns);
    if (lanes == 1) {
        const int tiles = tmoei_pieces(rows, tmoei_least(most_rows, rows));
        p->tile_rows = tmoei_pieces(rows, tiles) * highest;
        p->tile_columns = most_columns * TMOEI_NR_MAX;
        return;
    }

    const float cost_b = (packs_b ? TMOEI_COST_PACK_B : TMOEI_COST_READ_B) / (float)highest;
    const float cost_a = p->a_in_place ? TMOEI_COST_READ_A : TMOEI_COST_PACK_A;
    int tiles = p->a_in_place ? 1 : tmoei_pieces(rows, tmoei_least(most_rows, rows));
    float least = 0.0f;
    for (;;) {
        const int r = tmoei_pieces(rows, tiles);
        const int tile_rows = tmoei_pieces(p->M, tiles);
        const int panels = tmoei_pieces(tile_rows, highest);
        const int height = tmoei_pieces(tile_rows, panels);
        const float sums = (float)(panels * height) / (float)highest;
        for (int c = 1; c <= most_columns; c++) {
            const int busiest = tmoei_pieces(tiles * tmoei_pieces(columns, c), lanes);
            const float cost = ((float)busiest + TMOEI_COST_UNEVEN)
                * ((sums + cost_b) * (float)(c * unit) + cost_a * (float)(r * unit)
                    + TMOEI_COST_BEGIN);
            if (least > 0.0f && cost >= least) continue;
            least = cost;
            p->tile_rows = tile_rows;
            p->tile_columns = c * TMOEI_NR_MAX;
            p->height = height;
        }
        if (r == 1) return;
        tiles = tmoei_pieces(rows, (rows - 1) / tiles); /* the next number that makes r smaller */
    }
}

/* Weights that every step of decoding reads stay packed while ctx->keeping is set: this head, then
 * the panels. */
struct tmoei_kept {
    struct tmoei_kept *before;
    const float *x;
    int rows, cols;
};

/* Finds the packed copy of p's B, or makes room for it; without memory p stays as it is. */
static void tmoei_product_keep(tmoe_ctx *ctx, tmoei_product *p)
{
    const size_t head = TMOEI_ALIGN / sizeof(float);
    struct tmoei_kept *kept = ctx->kept;
    while (kept && (kept->x != p->b->x || kept->rows != p->K || kept->cols != p->N))
        kept = kept->before;
    p->pack = !kept;
    if (!kept) {
        const size_t columns = (size_t)p->N + TMOEI_NR_MAX;
        const size_t column_bytes = ((size_t)p->K + head) * sizeof(float);
        kept = (struct tmoei_kept *)tmoei_alloc(ctx, columns, column_bytes, 0);
        if (!kept) return;
        kept->before = ctx->kept;
        kept->x = p->b->x;
        kept->rows = p->K;
        kept->cols = p->N;
        ctx->kept = kept;
    }
    p->packed_b = (float *)(void *)kept + head;
    p->kept = 1;
}

/* Returns whether there is nothing to multiply, and does then what is left to do. */
static int tmoei_product_empty(const tmoei_product *p)
{
    if (p->M <= 0 || p->N <= 0) return 1;
    if (p->K > 0) return 0;
    if (p->c->beta == 0.0f)
        for (size_t row = 0; row < (size_t)p->M; row++)
            memset(p->c->x + row * p->c->stride, 0, (size_t)p->N * sizeof(float));
    if (p->epilogue)
        p->ctx->kernels->epilogue(p->epilogue, p->c->x, p->c->stride, 0, 0, p->M, p->N);
    return 1;
}

static void tmoei_product_on_lanes(tmoe_ctx *ctx, const tmoei_matrix *a, const tmoei_matrix *b,
    const tmoei_output *c, const tmoei_epilogue *epilogue)
{
    tmoei_product p;
    tmoei_product_plan(&p, ctx, a, b, c);
    p.epilogue = epilogue;
    if (tmoei_product_empty(&p)) return;

    const int keep =
        ctx->keeping && b->transposed && !a->transposed && p.M > 1 && p.M <= TMOEI_LANE_ROWS;
    const int few = b->transposed ? TMOEI_FEW_ROWS : TMOEI_FEW_ROWS_PLAIN;
    if (!a->transposed && !keep && p.M <= few) {
        p.tile_columns = TMOEI_FEW_COLUMNS;
        if (b->transposed) p.tile_columns = TMOEI_FEW_PRODUCTS / tmoei_least(p.K, 1024);
        tmoei_parallel(ctx, tmoei_product_few_chunk, &p, tmoei_pieces(p.N, p.tile_columns));
        return;
    }

    /* What other lanes packed lies in their caches: with enough rows, a lane packs what it reads
     * (two threads +9 to +12 %). */
    const int rows_for_all =
        ctx->lanes > 1 && p.a_in_place && p.M >= TMOEI_LANE_PACKS_ROWS * ctx->lanes;
    if (!p.b_in_place && p.M > TMOEI_LANE_ROWS && !rows_for_all) p.packed_b = ctx->shared_scratch;
    if (keep) tmoei_product_keep(ctx, &p);
    tmoei_product_tiles(&p);
    tmoei_product_blocks(&p, p.kept ? p.N : ctx->block_columns, ctx, 0);
}

static void tmoei_product_on_lane(const tmoe_ctx *ctx, int lane, const tmoei_matrix *a,
    const tmoei_matrix *b, const tmoei_output *c)
{
    tmoei_product p;
    tmoei_product_plan(&p, ctx, a, b, c);
    if (tmoei_product_empty(&p)) return;
    if (!p.b_in_place) p.packed_b = ctx->lane_scratch[lane];
    p.tile_rows = TMOEI_LANE_ROWS / p.height * p.height;
    p.tile_columns = TMOEI_TILE_COLUMNS;
    tmoei_product_blocks(&p, p.tile_columns, NULL, lane);
}

/* What the rooms below call; inline, so that no struct is copied.
 * C (M,N) = beta C + A (M,K) B (K,N), then the epilogue (or NULL); over all lanes. */
static inline void tmoei_gemm(tmoe_ctx *ctx, tmoei_matrix a, tmoei_matrix b, tmoei_output c,
    const tmoei_epilogue *epilogue)
{
    tmoei_product_on_lanes(ctx, &a, &b, &c, epilogue);
}

/* The same on the calling lane only, for small products inside a parallel region. */
static inline void tmoei_gemm_lane(const tmoe_ctx *ctx, int lane, tmoei_matrix a, tmoei_matrix b,
    tmoei_output c)
{
    tmoei_product_on_lane(ctx, lane, &a, &b, &c);
}

/* ==== >>sweeps: long rows of numbers over the lanes =========================================== */

#define TMOEI_SWEEP 4096 /* floats of a chunk: at least a microsecond of work */

/* Works on the n elements, rows or columns of a job from `at` on. */
typedef void tmoei_sweep_fn(const tmoe_ctx *ctx, const void *job, size_t at, size_t n);

typedef struct tmoei_sweep_job {
    const tmoe_ctx *ctx;
    tmoei_sweep_fn *fn;
    const void *job;
    size_t total, grain;
} tmoei_sweep_job;

static void tmoei_sweep_chunk(void *arg, int chunk, int lane)
{
    const tmoei_sweep_job *s = (const tmoei_sweep_job *)arg;
    const size_t at = (size_t)chunk * s->grain, left = s->total - at;
    (void)lane;
    s->fn(s->ctx, s->job, at, tmoei_least_size(left, s->grain));
}

/* Runs fn over 0 .. total - 1, in chunks of `grain`, on all lanes. */
static void tmoei_sweep(tmoe_ctx *ctx, size_t total, size_t grain, tmoei_sweep_fn *fn,
    const void *job)
{
    tmoei_sweep_job s = { ctx, fn, job, total, grain };
    tmoei_parallel(ctx, tmoei_sweep_chunk, &s, (int)((total + grain - 1) / grain));
}

/* The number of rows in a chunk. */
static size_t tmoei_grain(size_t width)
{
    return width >= TMOEI_SWEEP ? 1 : TMOEI_SWEEP / width;
}

/* y = beta y + a x */
typedef struct tmoei_scale_add_job {
    float *y, beta, a;
    const float *x;
} tmoei_scale_add_job;

static void tmoei_scale_add_sweep(const tmoe_ctx *ctx, const void *job, size_t at, size_t n)
{
    const tmoei_scale_add_job *s = (const tmoei_scale_add_job *)job;
    ctx->kernels->scale_add(s->y + at, s->beta, s->a, s->x + at, n);
}

static void tmoei_scale_add(tmoe_ctx *ctx, float *y, float beta, float a, const float *x, size_t n)
{
    const tmoei_scale_add_job job = { y, beta, a, x };
    tmoei_sweep(ctx, n, TMOEI_SWEEP, tmoei_scale_add_sweep, &job);
}

/* <a, b> on this lane: chunks in float, their sum in double. */
static double tmoei_dot(const tmoe_ctx *ctx, const float *a, const float *b, size_t n, size_t chunk)
{
    double sum = 0.0;
    for (size_t at = 0; at < n; at += chunk)
        sum += (double)ctx->kernels->dot(a + at, b + at, tmoei_least_size(n - at, chunk));
    return sum;
}

static float tmoei_activation_value(tmoe_activation f, float x)
{
    switch (f) {
    case TMOE_RELU:
        return x > 0.0f ? x : 0.0f;
    case TMOE_TANH:
        return tanhf(x);
    case TMOE_SIGMOID:
        return 1.0f / (1.0f + expf(-x));
    default:
        return x;
    }
}

static float tmoei_activation_slope(tmoe_activation f, float x)
{
    const float y = tmoei_activation_value(f, x);
    switch (f) {
    case TMOE_RELU:
        return x > 0.0f ? 1.0f : 0.0f;
    case TMOE_TANH:
        return 1.0f - y * y;
    case TMOE_SIGMOID:
        return y * (1.0f - y);
    default:
        return 1.0f;
    }
}

/* out = f(x), or out = dy f'(x) where dy is given */
typedef struct tmoei_map_job {
    tmoe_activation f;
    float *out;
    const float *dy, *x;
} tmoei_map_job;

static void tmoei_activation_sweep(const tmoe_ctx *ctx, const void *job, size_t at, size_t n)
{
    const tmoei_map_job *s = (const tmoei_map_job *)job;
    if (s->f == TMOE_GELU) {
        ctx->kernels->gelu(s->out + at, s->dy ? s->dy + at : NULL, s->x + at, n);
        return;
    }
    for (size_t i = at; i < at + n; i++) {
        if (s->dy)
            s->out[i] = s->dy[i] * tmoei_activation_slope(s->f, s->x[i]);
        else
            s->out[i] = tmoei_activation_value(s->f, s->x[i]);
    }
}

static void tmoei_activation_apply(tmoe_ctx *ctx, tmoe_activation f, float *out, const float *dy,
    const float *x, size_t n)
{
    const tmoei_map_job job = { f, out, dy, x };
    tmoei_sweep(ctx, n, TMOEI_SWEEP, tmoei_activation_sweep, &job);
}

/* lse = m + log sum_j exp(x_j - m),  m = max_j x_j */
static float tmoei_log_sum_exp(const tmoe_ctx *ctx, const float *x, int n)
{
    const float most = ctx->kernels->maximum(x, (size_t)n);
    return most + logf(ctx->kernels->exp_sum(NULL, x, 1.0f, most, (size_t)n));
}

/* ==== >>polar: a matrix made orthogonal ==========================================================
 * polar(X) = U V^T of the singular value decomposition X = U S V^T: all singular values become 1.
 * An odd polynomial of X changes its singular values and nothing else. Two polynomials of degree 9,
 * each the best for the interval that it meets (as Amsel 2025, Polar Express, arXiv 2505.16932,
 * composes those of degree 5), bring all values between LEAST and 1 near to 1:
 *   X <- P(X X^T) X,  P(A) = a I + b A + c A^2 + d A^3 + e A^4
 * X X^T is as small as the smaller side n, and all that is made of it commutes and is symmetric. So
 * we iterate there, and X is read twice:
 *   A = X X^T;  Q = P1(A);  A <- Q A Q;  Q <- P2(A) Q;  polar(X) = Q X
 * Symmetric products take about half of the work. For X of n x m the seven of n x n and X X^T are
 * about 7 n^3 + n^2 m flop, and Q X is 2 n^2 m: 10 n^3 for m = n, 19 n^3 for m = 4 n. Jordan's five
 * steps of degree 5, as he writes them, take 30 n^3 and 90 n^3.
 *
 * The values have to begin between 0 and 1. |X|_F (Jordan's choice) is a loose bound of the largest
 * one: 5 times too large for random 96 x 96, which costs a step. The first A^2 is needed anyway and
 * gives a bound that is 1.2 times too large: s^2 = |A^2|_F^(1/2) = (sum of s_i^8)^(1/4).
 *
 * In float the result is within 2e-3 of the exact polynomial (in the operator norm), whatever the
 * condition of X: rank 1, values of 1e-8, X of any length. Values below LEAST come out smaller. */

#define TMOEI_POLAR_LEAST 0.014 /* in units of the bound s */

/* a, b, c, d, e of the two polynomials. The first brings [LEAST, 1] to 1 +- 0.79, the second from
 * there to 1 +- 0.25. */
static const float tmoei_polar_steps[2][5] = { { 13.449686f, -126.754456f, 417.014681f,
                                                   -533.070415f, 231.172943f },
    { 4.310622f, -9.153523f, 8.253386f, -3.045340f, 0.389342f } };

#define TMOEI_POLAR_MATRICES 4 /* (n, n) of scratch */
#define TMOEI_POLAR_COLUMNS 32 /* of a panel of a symmetric product: one of the micro-kernel's */
#define TMOEI_POLAR_PANELS 8   /* or as wide as an eighth: 6 % more than half of the work */
#define TMOEI_POLAR_DOT 1024   /* terms of a sum in float */

/* theta <- keep theta + step polar(x). x is scaled to length 1. Where its length is 0, or too large
 * for a float, theta <- keep theta. */
typedef struct tmoei_polar {
    float *theta, *x;
    int rows, cols;
    float step, keep;
    float *scratch; /* (tmoei_polar_floats) */
} tmoei_polar;

static size_t tmoei_polar_floats(int rows, int cols)
{
    const size_t n = (size_t)tmoei_least(rows, cols);
    return TMOEI_POLAR_MATRICES * n * n;
}

static void tmoei_scale_lane(const tmoe_ctx *ctx, float *x, float scale, size_t n)
{
    ctx->kernels->scale_add(x, scale, 0.0f, x, n);
}

static float tmoei_length(const tmoe_ctx *ctx, const float *x, size_t n)
{
    return (float)sqrt(tmoei_dot(ctx, x, x, n, TMOEI_POLAR_DOT));
}

/* C = beta C + a b (n, n), known to be symmetric: panels of its lower triangle, which are
 * mirrored. */
static void tmoei_symmetric_product(const tmoe_ctx *ctx, int lane, tmoei_output c, tmoei_matrix a,
    tmoei_matrix b)
{
    const int n = a.rows, panels = tmoei_pieces(n, TMOEI_POLAR_COLUMNS);
    const int width = tmoei_pieces(panels, TMOEI_POLAR_PANELS) * TMOEI_POLAR_COLUMNS;
    for (int j = 0; j < n; j += width) {
        const int columns = tmoei_least(width, n - j), below = n - j - columns;
        float *corner = c.x + (size_t)j * c.stride + (size_t)j;
        tmoei_gemm_lane(ctx, lane, tmoei_window(&a, j, 0, n - j, a.cols),
            tmoei_window(&b, 0, j, b.rows, columns), tmoei_output_of(corner, c.stride, c.beta));
        if (below == 0) return;

        const float *source = corner + (size_t)columns * c.stride;
        const tmoei_matrix rest = tmoei_matrix_of(source, below, columns, c.stride);
        ctx->kernels->transpose(corner + columns, c.stride, &rest);
    }
}

/* The same of symmetric a and b (n, n). */
static void tmoei_symmetric_square(const tmoe_ctx *ctx, int lane, int n, float *c, float beta,
    const float *a, const float *b)
{
    const size_t stride = (size_t)n;
    tmoei_symmetric_product(ctx, lane, tmoei_output_of(c, stride, beta),
        tmoei_matrix_of(a, n, n, stride), tmoei_matrix_of(b, n, n, stride));
}

/* Where a polynomial is made: A and its square, and scratch. */
typedef struct tmoei_polar_parts {
    int n;
    float *A, *A2, *mixed;
} tmoei_polar_parts;

/* P(A) (n, n) into p, which may be A itself, from A2 = A^2:
 *   a I + b A + c A2 + A2 (d A + e A2); the bracket is made in `mixed`. */
static void tmoei_polar_polynomial(const tmoe_ctx *ctx, int lane, const float *step,
    const tmoei_polar_parts *parts, float *p)
{
    const size_t n = (size_t)parts->n, size = n * n;
    const float *A = parts->A, *A2 = parts->A2;
    ctx->kernels->scale_add(parts->mixed, 0.0f, step[3], A, size);
    ctx->kernels->scale_add(parts->mixed, 1.0f, step[4], A2, size);
    ctx->kernels->scale_add(p, 0.0f, step[1], A, size);
    ctx->kernels->scale_add(p, 1.0f, step[2], A2, size);
    for (size_t i = 0; i < n; i++) p[i * n + i] += step[0];
    tmoei_symmetric_square(ctx, lane, parts->n, p, 1.0f, A2, parts->mixed);
}

/* Q with polar(x) = Q x for wide, x Q for tall x, whose length is 1; lies in scratch. */
static float *tmoei_polar_factor(const tmoe_ctx *ctx, int lane, const tmoei_polar *polar)
{
    tmoei_matrix x = tmoei_matrix_of(polar->x, polar->rows, polar->cols, (size_t)polar->cols);
    if (x.rows > x.cols) x = tmoei_transposed(x);
    const int n = x.rows;
    const size_t size = (size_t)n * (size_t)n;
    float *A = polar->scratch, *A2 = A + size, *mixed = A2 + size, *Q = mixed + size;
    const tmoei_polar_parts parts = { n, A, A2, mixed };
    tmoei_symmetric_product(ctx, lane, tmoei_output_of(A, (size_t)n, 0.0f), x, tmoei_transposed(x));
    tmoei_symmetric_square(ctx, lane, n, A2, 0.0f, A, A);

    const float bound = sqrtf(tmoei_length(ctx, A2, size)); /* s^2 */
    tmoei_scale_lane(ctx, A, 1.0f / bound, size);
    tmoei_scale_lane(ctx, A2, 1.0f / (bound * bound), size);
    tmoei_polar_polynomial(ctx, lane, tmoei_polar_steps[0], &parts, Q);

    tmoei_symmetric_square(ctx, lane, n, mixed, 0.0f, Q, A);
    tmoei_symmetric_square(ctx, lane, n, A, 0.0f, mixed, Q); /* Q A Q */
    tmoei_symmetric_square(ctx, lane, n, A2, 0.0f, A, A);
    tmoei_polar_polynomial(ctx, lane, tmoei_polar_steps[1], &parts, A);
    tmoei_symmetric_square(ctx, lane, n, mixed, 0.0f, A, Q);
    tmoei_scale_lane(ctx, mixed, 1.0f / sqrtf(bound), size);
    return mixed;
}

static void tmoei_polar_add(const tmoe_ctx *ctx, int lane, const tmoei_polar *polar)
{
    const size_t size = (size_t)polar->rows * (size_t)polar->cols;
    const int wide = polar->rows <= polar->cols, n = wide ? polar->rows : polar->cols;
    const float length = tmoei_length(ctx, polar->x, size);
    if (polar->keep != 1.0f) tmoei_scale_lane(ctx, polar->theta, polar->keep, size);
    if (!(length > 0.0f && length < FLT_MAX)) return;

    tmoei_scale_lane(ctx, polar->x, 1.0f / length, size);
    float *Q = tmoei_polar_factor(ctx, lane, polar);
    tmoei_scale_lane(ctx, Q, polar->step, (size_t)n * (size_t)n);
    const tmoei_matrix q = tmoei_matrix_of(Q, n, n, (size_t)n);
    const tmoei_matrix x = tmoei_matrix_of(polar->x, polar->rows, polar->cols, (size_t)polar->cols);
    const tmoei_output theta = tmoei_output_of(polar->theta, (size_t)polar->cols, 1.0f);
    tmoei_gemm_lane(ctx, lane, wide ? q : x, wide ? x : q, theta);
}

/* ==== >>context =============================================================================== */

TMOE_DEF const char *tmoe_result_name(tmoe_result result)
{
    static const char *const texts[] = {
#define TMOEI_RESULT_TEXT(code, text) text,
        TMOE_RESULTS(TMOEI_RESULT_TEXT)
    };
    return (unsigned)result < (unsigned)TMOE_RESULT_COUNT ? texts[result] : "unknown result";
}

TMOE_DEF int tmoe_version(void)
{
    return TMOE_VERSION;
}

TMOE_DEF tmoe_result tmoe_error(const tmoe_ctx *ctx)
{
    return ctx->error;
}

TMOE_DEF const char *tmoe_error_message(const tmoe_ctx *ctx)
{
    return ctx->error ? ctx->message : "";
}

TMOE_DEF const char *tmoe_ctx_isa(const tmoe_ctx *ctx)
{
    return ctx->kernels->name;
}

TMOE_DEF int tmoe_ctx_threads(const tmoe_ctx *ctx)
{
    return ctx->lanes;
}

TMOE_DEF size_t tmoe_ctx_bytes(const tmoe_ctx *ctx, size_t *peak)
{
    if (peak) *peak = ctx->bytes_peak;
    return ctx->bytes_now;
}

TMOE_DEF void tmoe_ctx_destroy(tmoe_ctx *ctx)
{
    if (!ctx) return;
    tmoei_pool_destroy(ctx);
    for (int lane = 0; lane < ctx->lanes; lane++) tmoei_free(ctx, ctx->lane_scratch[lane]);
    tmoei_free(ctx, ctx->shared_scratch);
    if (ctx->config.free_fn)
        ctx->config.free_fn(ctx, sizeof *ctx, ctx->config.alloc_user);
    else
        TMOE_FREE(ctx);
}

/* Packed rows of A fill a sixth of the second level, columns of B a quarter of the third. */
static void tmoei_fit_caches(tmoe_ctx *ctx)
{
    size_t l2 = (size_t)512 << 10, l3 = (size_t)4 << 20; /* where the processor does not tell */
    tmoei_cache_sizes(&l2, &l3);
    size_t rows = tmoei_least_size(l2 / (6 * TMOEI_KC * sizeof(float)), 448);
    if (rows < 28) rows = 28;
    const size_t tile_bytes = (size_t)TMOEI_KC * TMOEI_TILE_COLUMNS * sizeof(float);
    size_t tiles = tmoei_least_size(l3 / (4 * tile_bytes), TMOEI_NC / TMOEI_TILE_COLUMNS);
    if (tiles < 1) tiles = 1;
    ctx->tile_rows = (int)rows;
    ctx->block_columns = TMOEI_TILE_COLUMNS * (int)tiles;
}

TMOE_DEF tmoe_ctx *tmoe_ctx_create(const tmoe_ctx_config *config)
{
    tmoe_ctx_config c;
    tmoe_ctx *ctx;
    memset(&c, 0, sizeof c);
    if (config) c = *config;
    if (!c.alloc_fn != !c.free_fn) return NULL;
    if (c.threads < 0 || c.threads > TMOEI_LANES_MAX) return NULL;
    if ((int)c.isa < TMOE_ISA_AUTO || (int)c.isa > TMOE_ISA_AVX512) return NULL;
    if (c.alloc_fn)
        ctx = (tmoe_ctx *)c.alloc_fn(sizeof *ctx, c.alloc_user);
    else
        ctx = (tmoe_ctx *)TMOE_MALLOC(sizeof *ctx);
    if (!ctx) return NULL;

    memset(ctx, 0, sizeof *ctx);
    ctx->config = c;
    ctx->lanes = c.threads > 1 ? c.threads : 1;
    if (ctx->lanes > 1 && !c.parallel_fn) tmoei_pool_create(ctx);
    ctx->kernels = tmoei_kernels_choose(c.isa);
    tmoei_fit_caches(ctx);
    ctx->shared_scratch = (float *)tmoei_alloc(ctx, TMOEI_SHARED_FLOATS, sizeof(float), 0);
    for (int lane = 0; lane < ctx->lanes; lane++)
        ctx->lane_scratch[lane] = (float *)tmoei_alloc(ctx, TMOEI_LANE_FLOATS, sizeof(float), 0);
    if (ctx->error == TMOE_OK) return ctx;
    tmoe_ctx_destroy(ctx);
    return NULL;
}

/* ==== >>tape: values forward, gradients backward =================================================
 * An operation computes its result at once and leaves a node on the tape; tmoe_backward walks the
 * nodes from the last to the first. Two arenas hold a step: `nodes` for tensors and nodes, `big`
 * for floats.
 *
 * Gradients live in `big`, too. Their memory is taken when the backward pass first needs it and
 * released when the node that made the tensor is done. The next gradient then takes the same place,
 * so the backward pass stays in the cache.
 *
 * On a DRY tape floats are counted but never touched: so the memory of a step is known before
 * training starts. */

/* A released block is taken again only for the same shape. Then a step of shorter sequences never
 * takes more memory than one of the longest: the plan of memory (>>training) relies on it. */
typedef struct tmoei_free_block {
    void *data;
    size_t count, element_bytes;
} tmoei_free_block;

#define TMOEI_FREE_BLOCKS 128 /* the outputs of a layer's experts, and a layer's gradients */
#define TMOEI_ARENA_CHUNK ((size_t)1 << 16) /* bytes of the smallest chunk */

typedef struct tmoei_arena {
    tmoei_owner chunks;      /* a reset leaves one chunk that would have held everything */
    size_t size, used;       /* bytes of the newest chunk */
    size_t total, peak, now; /* bytes in chunks; most and present bytes handed out */
    int dry, free_count;
    tmoei_free_block free_blocks[TMOEI_FREE_BLOCKS];
} tmoei_arena;

/* Takes a released block of this shape, the latest first: it is still in the cache. NULL: none. */
static void *tmoei_arena_reuse(tmoei_arena *arena, size_t count, size_t element_bytes)
{
    for (int i = arena->free_count - 1; i >= 0; i--) {
        tmoei_free_block *block = &arena->free_blocks[i];
        if (block->count != count || block->element_bytes != element_bytes) continue;
        void *data = block->data;
        *block = arena->free_blocks[--arena->free_count];
        return data;
    }
    return NULL;
}

/* Makes room for `bytes` in the newest chunk; chunks double. */
static int tmoei_arena_grow(tmoei_arena *arena, size_t bytes)
{
    size_t size = arena->total > TMOEI_ARENA_CHUNK ? arena->total : TMOEI_ARENA_CHUNK;
    if (size < bytes) size = bytes;
    if (!arena->size) arena->total = 0; /* the reset has freed the chunks that it counts */
    if (!tmoei_own_block(&arena->chunks, size, 1, 0)) return 0;

    arena->size = size;
    arena->used = 0;
    arena->total += size;
    return 1;
}

static void *tmoei_arena_alloc(tmoei_arena *arena, size_t count, size_t element_bytes)
{
    size_t bytes;
    if (!tmoei_size(&bytes, count, element_bytes, TMOEI_ALIGN)) /* the allocator reports the size */
        return tmoei_alloc(arena->chunks.ctx, count, element_bytes, 0);
    bytes -= bytes % TMOEI_ALIGN;

    void *reused = tmoei_arena_reuse(arena, count, element_bytes);
    if (reused) return reused;
    if (!arena->dry && arena->size - arena->used < bytes && !tmoei_arena_grow(arena, bytes))
        return NULL;

    arena->now += bytes;
    if (arena->now > arena->peak) arena->peak = arena->now;
    if (arena->dry) /* an address that nothing reads or writes */
        return (void *)(uintptr_t)(TMOEI_ALIGN + arena->now - bytes);
    arena->used += bytes;
    return (char *)arena->chunks.last + (arena->used - bytes);
}

/* Releases a block before the reset. When the table is full, the block stays until the reset. */
static void tmoei_arena_release(tmoei_arena *arena, void *data, size_t count, size_t element_bytes)
{
    if (arena->free_count == TMOEI_FREE_BLOCKS) return;
    tmoei_free_block *block = &arena->free_blocks[arena->free_count++];
    block->data = data;
    block->count = count;
    block->element_bytes = element_bytes;
}

/* Empties the arena. Several chunks are replaced by one of their total size, so a repeated step
 * allocates nothing. */
static void tmoei_arena_reset(tmoei_arena *arena)
{
    if (arena->total > arena->size) {
        tmoei_owner_free(&arena->chunks);
        arena->size = 0;
    }
    arena->now = arena->used = 0;
    arena->free_count = 0;
}

typedef struct tmoei_node {
    struct tmoei_node *before;
    void (*backward)(tmoe_tape *tape, struct tmoei_node *node);
    tmoe_tensor *y, **in;
    float *beta;      /* for each input; this, hand, owned and unwritten: see the head of >>ops */
    const void *kept; /* what the operation needs again */
    int count, hand;  /* number of inputs; an input, or one of the following */
} tmoei_node;

#define TMOEI_HAND_NONE (-1)
#define TMOEI_HAND_VALUES (-2)

typedef void tmoei_backward_fn(tmoe_tape *tape, tmoei_node *node);

typedef struct tmoei_tensor { /* what tmoe_tensor does not show */
    tmoe_tensor t;
    int owned, unwritten, used_up;
} tmoei_tensor;

struct tmoe_tape {
    tmoe_ctx *ctx;
    tmoei_arena nodes, big;
    tmoei_node *last;
    int record, dry;
};

static tmoe_tape *tmoei_tape_new(tmoe_ctx *ctx)
{
    tmoe_tape *tape = (tmoe_tape *)tmoei_alloc(ctx, 1, sizeof *tape, 1);
    if (!tape) return NULL;

    tape->ctx = ctx;
    tape->nodes.chunks.ctx = ctx;
    tape->big.chunks.ctx = ctx;
    tape->record = 1;
    return tape;
}

TMOE_DEF tmoe_tape *tmoe_tape_create(tmoe_ctx *ctx)
{
    tmoei_begin(ctx);
    return tmoei_tape_new(ctx);
}

TMOE_DEF void tmoe_tape_destroy(tmoe_tape *tape)
{
    if (!tape) return;
    tmoei_owner_free(&tape->nodes.chunks);
    tmoei_owner_free(&tape->big.chunks);
    tmoei_free(tape->ctx, tape);
}

TMOE_DEF void tmoe_tape_reset(tmoe_tape *tape)
{
    tmoei_begin(tape->ctx);
    tape->last = NULL;
    tmoei_arena_reset(&tape->nodes);
    tmoei_arena_reset(&tape->big);
}

TMOE_DEF void tmoe_tape_record(tmoe_tape *tape, int on)
{
    tape->record = on;
}

static size_t tmoei_elements(const tmoe_tensor *t)
{
    return (size_t)t->rows * (size_t)t->cols;
}

static size_t tmoei_row_bytes(const tmoe_tensor *t)
{
    return (size_t)t->cols * sizeof(float);
}

static float *tmoei_floats(tmoe_tape *tape, size_t count)
{
    return (float *)tmoei_arena_alloc(&tape->big, count, sizeof(float));
}

/* A tensor around the caller's memory (x given) or in the tape's arena (x NULL). */
static tmoe_tensor *tmoei_tensor_new(tmoe_tape *tape, int rows, int cols, float *x)
{
    tmoei_tensor *tensor = (tmoei_tensor *)tmoei_arena_alloc(&tape->nodes, 1, sizeof *tensor);
    if (!tensor) return NULL;

    memset(tensor, 0, sizeof *tensor);
    tensor->t.rows = rows;
    tensor->t.cols = cols;
    tensor->t.x = x ? x : tmoei_floats(tape, (size_t)rows * (size_t)cols);
    return tensor->t.x ? &tensor->t : NULL;
}

/* In an operation: returns NULL unless the rule holds. The message has the values and the rule. */
#define TMOEI_RULE(code, tape, holds, ...) \
    do { \
        if (!(holds)) return TMOEI_FAIL_NULL((tape)->ctx, code, __VA_ARGS__); \
    } while (0)
#define TMOEI_SHAPE_RULE(...) TMOEI_RULE(TMOE_ERR_SHAPE, __VA_ARGS__)
#define TMOEI_ARGUMENT_RULE(...) TMOEI_RULE(TMOE_ERR_ARGUMENT, __VA_ARGS__)

TMOE_DEF tmoe_tensor *tmoe_leaf(tmoe_tape *tape, int rows, int cols, float *x, float *dx)
{
    TMOEI_ARGUMENT_RULE(tape, x && rows >= 1 && cols >= 1,
        "leaf: (%d,%d)%s; needs memory and at least one element", rows, cols, x ? "" : " at NULL");
    tmoe_tensor *tensor = tmoei_tensor_new(tape, rows, cols, x);
    if (tensor && dx) {
        tensor->dx = dx;
        tensor->wants_grad = 1;
        tensor->has_grad = 1;
    }
    return tensor;
}

/* Returns whether an operation on these inputs needs a backward pass. */
static int tmoei_wants_grad(const tmoe_tape *tape, tmoe_tensor *const *in, int count)
{
    if (!tape->record) return 0;
    for (int i = 0; i < count; i++)
        if (in[i] && in[i]->wants_grad) return 1;
    return 0;
}

/* Leaves a node on the tape if an input (of a recording tape) or y itself wants a gradient. `kept`
 * and the inputs are copied. Returns y; NULL when y is NULL or memory runs out. */
static tmoe_tensor *tmoei_record(tmoe_tape *tape, tmoe_tensor *y, tmoei_backward_fn *backward,
    int hand, const void *kept, size_t kept_bytes, tmoe_tensor *const *in, int count)
{
    const size_t n = (size_t)count;
    for (int i = 0; i < count; i++)
        TMOEI_ARGUMENT_RULE(tape, !tape->record || !in[i] || !((tmoei_tensor *)in[i])->used_up,
            "an operation on a tensor that the tape's last backward pass used up");
    if (!y || (!y->wants_grad && !tmoei_wants_grad(tape, in, count))) return y;

    tmoei_node *node = (tmoei_node *)tmoei_arena_alloc(&tape->nodes, 1, sizeof *node);
    tmoe_tensor **inputs = (tmoe_tensor **)tmoei_arena_alloc(&tape->nodes, n, sizeof *inputs);
    float *beta = (float *)tmoei_arena_alloc(&tape->nodes, n, sizeof *beta);
    void *copy = tmoei_arena_alloc(&tape->nodes, kept_bytes, 1);
    if (!node || !inputs || !beta || !copy) return NULL;
    memcpy(inputs, in, n * sizeof *in);
    if (kept_bytes) memcpy(copy, kept, kept_bytes);

    node->backward = backward;
    node->y = y;
    node->in = inputs;
    node->beta = beta;
    node->kept = copy;
    node->count = count;
    node->hand = hand;
    node->before = tape->last;
    tape->last = node;
    y->wants_grad = 1;
    return y;
}

/* Memory for the gradient of input i, which has none yet. */
static void tmoei_gradient_memory(tmoe_tape *tape, const tmoei_node *node, int i)
{
    tmoe_tensor *in = node->in[i], *y = node->y;
    if (node->hand == TMOEI_HAND_VALUES)
        in->dx = in->x;
    else if (i == node->hand && ((tmoei_tensor *)y)->owned) {
        in->dx = y->dx;
        in->has_grad = 1;
    } else
        in->dx = (float *)tmoei_arena_alloc(&tape->big, (size_t)in->rows, tmoei_row_bytes(in));
    ((tmoei_tensor *)in)->owned = 1;
}

/* Walks the tape back from the gradients that some tensors already have in dx. Before it calls an
 * operation's backward function, every input that wants a gradient has memory for it, and
 * node->beta[i] says what to do there: dx = beta dx + ... A dry tape does not call it. */
static tmoe_result tmoei_tape_walk(tmoe_tape *tape)
{
    for (tmoei_node *node = tape->last; node; node = node->before) {
        tmoe_tensor *y = node->y;
        int taken = 0; /* by an input: the memory of y->dx */
        ((tmoei_tensor *)y)->used_up = 1;
        if (!y->dx) continue;           /* nothing that reached the loss used it */
        if (!y->has_grad && !tape->dry) /* a part of a block that no operation wrote to */
            memset(y->dx, 0, tmoei_elements(y) * sizeof(float));

        for (int i = 0; i < node->count; i++) {
            tmoe_tensor *in = node->in[i];
            if (!in || !in->wants_grad) continue;
            if (!in->dx) tmoei_gradient_memory(tape, node, i);
            if (!in->dx) return tape->ctx->error;
            if (in->dx == y->dx) taken = 1;
            node->beta[i] = in->has_grad ? 1.0f : 0.0f;
            if (node->backward) in->has_grad = 1;
        }

        if (!tape->dry && node->backward) node->backward(tape, node);
        if (tape->ctx->error != TMOE_OK) return tape->ctx->error;
        if (((tmoei_tensor *)y)->owned && !taken)
            tmoei_arena_release(&tape->big, y->dx, (size_t)y->rows, tmoei_row_bytes(y));
    }
    tape->last = NULL;
    return TMOE_OK;
}

static tmoe_result tmoei_tape_backward(tmoe_tape *tape)
{
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    const tmoe_result result = tmoei_tape_walk(tape);
    tmoei_float_mode_leave(mode);
    return result;
}

TMOE_DEF tmoe_result tmoe_backward(tmoe_tape *tape, tmoe_tensor *loss)
{
    if (tape->ctx->error != TMOE_OK) return tape->ctx->error;

    const tmoei_node *maker = tape->last;
    while (maker && maker->y != loss) maker = maker->before;
    if (!maker || loss->rows != 1 || loss->cols != 1)
        return tmoei_fail(tape->ctx, TMOE_ERR_ARGUMENT,
            "backward: the loss must be a (1,1) tensor that this tape has recorded since its last "
            "backward pass");

    if (!loss->dx) loss->dx = tmoei_floats(tape, 1);
    if (!loss->dx) return tape->ctx->error;
    if (!tape->dry) loss->dx[0] = 1.0f;
    loss->has_grad = 1;
    return tmoei_tape_backward(tape);
}

/* ---- part: a named piece of a block of parameters, as a matrix of its own ----
 * Its gradient is the same piece of the block's gradient. Where that memory is new (a merged
 * block), the first contribution overwrites it, and a node without a backward function makes
 * tmoei_tape_backward write zeros to a part that no operation used. Such parts must cover the
 * block. */
static tmoe_tensor *tmoei_part(tmoe_tape *tape, tmoe_tensor *block, size_t offset, int rows,
    int cols)
{
    if (!block) return NULL;
    tmoe_tensor *part = tmoei_tensor_new(tape, rows, cols, block->x + offset);
    if (!part || !block->wants_grad) return part;

    part->dx = block->dx + offset;
    part->wants_grad = 1;
    part->has_grad = !((tmoei_tensor *)block)->unwritten;
    if (part->has_grad) return part;
    block->has_grad = 1; /* through its parts */
    return tmoei_record(tape, part, NULL, TMOEI_HAND_NONE, NULL, 0, &block, 1);
}

/* ==== >>ops: each operation's shape rule, forward and backward on one screen =====================
 * HOW TO ADD AN OPERATION, with tmoe_affine, the first one below, as the model:
 *   1 poison    if (!x || tape->ctx->error != TMOE_OK) return NULL;  an earlier operation failed
 *   2 rule      TMOEI_SHAPE_RULE(tape, what must hold, "name: values; rule", ...);  see tmoe_slice
 *   3 result    y = tmoei_tensor_new(tape, rows, cols, NULL); other memory from tmoei_floats
 *   4 compute   only if !tape->dry: on a dry tape x->x must not be read. A loop outside tmoei_sweep
 *               and tmoei_parallel sets the float mode (>>machine) itself.
 *   5 record    return tmoei_record(tape, y, backward, hand, &kept, sizeof kept, in, count), which
 *               copies `kept`, and leaves a node only if an input wants a gradient
 *   6 backward  for each input that wants a gradient: dx = beta dx + its gradient, made from dy by
 *               tmoei_accumulate, tmoei_grad_to_add or node->beta[i]. Nothing reads dy afterwards:
 *               it may be overwritten, unless an input has taken it over.
 *   7 the declaration with its docstring; GRADIENT and REFUSED lines in tests/test_tape.c
 *
 * WHO OWNS dx, AND WHEN. y is the result of a node, dy = y->dx, `in` its inputs.
 *   dx          A leaf's is the program's memory, a part's is a piece of its block's, a merged
 *               block's is made with it. All others are NULL until the backward pass comes to the
 *               last operation that uses the tensor, and die when the tensor's own node is done.
 *   has_grad    1: dx holds a gradient, so the next contribution adds. It is 1 for a leaf that has
 *               a dx, and for the loss. tmoei_tape_backward sets it for an input when it calls the
 *               first backward function that writes to it. Where it still is 0 when the tensor's
 *               own node comes, tmoei_tape_backward fills dx with zeros.
 *   node->beta  beta[i] is has_grad of input i just before the call: 0 overwrite, 1 add; "(+)="
 *               below. Set by tmoei_tape_backward, read by the backward function.
 *   node->hand  Set by the operation, read by tmoei_tape_backward.
 *               i: input i's gradient is dy, or the backward function makes it from dy in place. If
 *               the tape owns dy and the input has no dx yet, the input takes over dy's memory.
 *               Then beta[i] is 1, dx == dy, and nothing is left to add.
 *               TMOEI_HAND_VALUES: an input without a dx uses its own x as memory. Only for values
 *               that no later backward function reads.
 *   owned       1: tmoei_tape_backward has found the memory of dx. It releases this memory when the
 *               tensor's own node is done, unless an input has taken it over.
 *   unwritten   1: the dx of this block is new memory, which its parts overwrite. Set by
 *               tmoe_mix_parameters and tmoei_mixed_row, read by tmoei_part.
 *   used_up     1: a backward pass is done with the tensor. tmoei_record refuses it as an input. */

/* dx = beta dx + a src, for input i of a node */
static void tmoei_accumulate(tmoe_tape *tape, const tmoei_node *node, int i, float a,
    const float *src)
{
    tmoe_tensor *in = node->in[i];
    if (!in->wants_grad || in->dx == src) return; /* the same memory: taken over */
    tmoei_scale_add(tape->ctx, in->dx, node->beta[i], a, src, tmoei_elements(in));
}

/* The gradient of input i; NULL where none is wanted. */
static float *tmoei_grad(const tmoei_node *node, int i)
{
    const tmoe_tensor *in = node->in[i];
    return in && in->wants_grad ? in->dx : NULL;
}

/* The same for code that can only add: a first contribution finds zeros. */
static float *tmoei_grad_to_add(const tmoei_node *node, int i)
{
    float *dx = tmoei_grad(node, i);
    if (dx && node->beta[i] == 0.0f) memset(dx, 0, tmoei_elements(node->in[i]) * sizeof(float));
    return dx;
}

/* Chunks of an operation read its node; forward it is not recorded yet. */
static tmoei_node tmoei_unrecorded(tmoe_tensor *y, tmoe_tensor **in, const void *kept)
{
    tmoei_node node;
    memset(&node, 0, sizeof node);
    node.y = y;
    node.in = in;
    node.kept = kept;
    return node;
}

/* Runs fn on all rows of t, over the lanes; on a dry tape it does nothing. */
static void tmoei_each_row(tmoe_tape *tape, const tmoe_tensor *t, tmoei_sweep_fn *fn,
    const void *job)
{
    if (tape->dry) return;
    tmoei_sweep(tape->ctx, (size_t)t->rows, tmoei_grain((size_t)t->cols), fn, job);
}

static tmoei_matrix tmoei_view(const tmoe_tensor *t)
{
    return tmoei_matrix_of(t->x, t->rows, t->cols, (size_t)t->cols);
}

/* Where a product writes the gradient of input i. */
static tmoei_output tmoei_grad_output(const tmoei_node *node, int i)
{
    const tmoe_tensor *in = node->in[i];
    return tmoei_output_of(in->dx, (size_t)in->cols, node->beta[i]);
}

/* ---- affine ----
 *   forward   y = scale x + shift
 *   backward  dx (+)= scale dy */
static void tmoei_affine_backward(tmoe_tape *tape, tmoei_node *node)
{
    tmoei_accumulate(tape, node, 0, *(const float *)node->kept, node->y->dx);
}

TMOE_DEF tmoe_tensor *tmoe_affine(tmoe_tape *tape, tmoe_tensor *x, float scale, float shift)
{
    if (!x || tape->ctx->error != TMOE_OK) return NULL;
    tmoe_tensor *y = tmoei_tensor_new(tape, x->rows, x->cols, NULL);
    if (!y) return NULL;

    if (!tape->dry) {
        const tmoei_float_mode mode = tmoei_float_mode_enter();
        const size_t n = tmoei_elements(x);
        for (size_t i = 0; i < n; i++) y->x[i] = scale * x->x[i] + shift;
        tmoei_float_mode_leave(mode);
    }
    return tmoei_record(tape, y, tmoei_affine_backward, TMOEI_HAND_NONE, &scale, sizeof scale, &x,
        1);
}

/* ---- linear ----
 *   forward   z = x w^T + b;  y = act(z) + residual
 *   backward  dz = dy act'(z);  dx (+)= dz w;  dw (+)= dz^T x;  db (+)= column sums of dz;
 *             dresidual (+)= dy
 *   keeps     z, unless act is NONE; the backward pass writes dz over it */
typedef struct tmoei_linear_kept {
    tmoe_activation act;
    float *z;
} tmoei_linear_kept;

typedef struct tmoei_column_sums_job { /* sums = beta sums + column sums of x */
    tmoei_matrix x;
    float *sums, beta;
} tmoei_column_sums_job;

#define TMOEI_COLUMNS 128    /* a chunk sums so many columns, row by row */
#define TMOEI_COLUMN_ROWS 16 /* rows that one merge adds, with weights 1 */

static void tmoei_column_sums(const tmoe_ctx *ctx, const void *job, size_t at, size_t n)
{
    static const float ones[TMOEI_COLUMN_ROWS] = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 };
    const tmoei_column_sums_job *s = (const tmoei_column_sums_job *)job;

    for (int row = 0; row < s->x.rows; row += TMOEI_COLUMN_ROWS)
        ctx->kernels->merge(s->sums + at, s->beta != 0.0f || row > 0,
            s->x.x + (size_t)row * s->x.stride + at, s->x.stride, ones,
            tmoei_least(s->x.rows - row, TMOEI_COLUMN_ROWS), n);
}

static void tmoei_linear_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoei_linear_kept *kept = (const tmoei_linear_kept *)node->kept;
    tmoe_tensor *y = node->y, *x = node->in[0], *w = node->in[1];

    /* dz = dy act'(z) */
    tmoei_matrix dz = tmoei_view(y);
    dz.x = y->dx;
    if (kept->z) {
        tmoei_activation_apply(tape->ctx, kept->act, kept->z, y->dx, kept->z, tmoei_elements(y));
        dz.x = kept->z;
    }

    /* db (+)= column sums of dz */
    if (tmoei_grad(node, 2)) {
        const tmoei_column_sums_job job = { dz, node->in[2]->dx, node->beta[2] };
        tmoei_sweep(tape->ctx, dz.stride, TMOEI_COLUMNS, tmoei_column_sums, &job);
    }

    /* dw (+)= dz^T x;  dx (+)= dz w;  dresidual (+)= dy */
    if (w->wants_grad)
        tmoei_gemm(tape->ctx, tmoei_transposed(dz), tmoei_view(x), tmoei_grad_output(node, 1),
            NULL);
    if (x->wants_grad) tmoei_gemm(tape->ctx, dz, tmoei_view(w), tmoei_grad_output(node, 0), NULL);
    if (node->in[3]) tmoei_accumulate(tape, node, 3, 1.0f, y->dx);
}

TMOE_DEF tmoe_tensor *tmoe_linear(tmoe_tape *tape, tmoe_tensor *x, tmoe_tensor *w, tmoe_tensor *b,
    tmoe_activation act, tmoe_tensor *residual)
{
    tmoe_tensor *in[4] = { x, w, b, residual };
    tmoei_linear_kept kept = { act, NULL };
    if (!x || !w || tape->ctx->error != TMOE_OK) return NULL;
    const int T = x->rows, D = x->cols, F = w->rows;
    TMOEI_SHAPE_RULE(tape,
        D == w->cols && (!b || (b->rows == 1 && b->cols == F))
            && (!residual || (residual->rows == T && residual->cols == F)),
        "linear: x (%d,%d), w (%d,%d), b (1,%d), residual (%d,%d); x (T,D), w (F,D), b (1,F), "
        "residual (T,F)",
        T, D, F, w->cols, b ? b->cols : F, residual ? residual->rows : T,
        residual ? residual->cols : F);
    TMOEI_ARGUMENT_RULE(tape, act == TMOE_NONE || act == TMOE_GELU || act == TMOE_RELU,
        "linear: act must be TMOE_NONE, TMOE_GELU or TMOE_RELU");

    tmoe_tensor *y = tmoei_tensor_new(tape, T, F, NULL);
    if (!y) return NULL;
    if (act != TMOE_NONE && tmoei_wants_grad(tape, in, 4)) {
        kept.z = tmoei_floats(tape, tmoei_elements(y));
        if (!kept.z) return NULL;
    }

    if (!tape->dry) {
        tmoei_epilogue epilogue;
        memset(&epilogue, 0, sizeof epilogue);
        epilogue.bias = b ? b->x : NULL;
        epilogue.activation = act;
        epilogue.pre = kept.z;
        epilogue.residual = residual ? residual->x : NULL;
        epilogue.pre_stride = epilogue.residual_stride = (size_t)F;
        tmoei_gemm(tape->ctx, tmoei_view(x), tmoei_transposed(tmoei_view(w)),
            tmoei_output_of(y->x, (size_t)F, 0.0f), &epilogue);
    }
    return tmoei_record(tape, y, tmoei_linear_backward, 3, &kept, sizeof kept, in, 4);
}

/* ---- layer norm ----
 *   forward   xhat = (x - mean) * inv,  inv = 1 / sqrt(var + eps);  y = gain * xhat + bias
 *   backward  g = gain * dy;  dx (+)= inv * (g - mean(g) - xhat * mean(g * xhat));
 *             dgain (+)= sum over rows of dy * xhat;  dbias (+)= sum over rows of dy
 *   keeps     mean and inv of each row */
#define TMOEI_NORM_EPSILON 1e-5f /* BART's, and torch's default */

typedef struct tmoei_norm_kept {
    float *mean, *inv;
} tmoei_norm_kept;

/* Forward, or backward where y has a dx. */
static void tmoei_norm_rows(const tmoe_ctx *ctx, const void *job, size_t first, size_t n)
{
    const tmoei_node *node = (const tmoei_node *)job;
    const tmoei_norm_kept *kept = (const tmoei_norm_kept *)node->kept;
    const tmoe_tensor *y = node->y, *x = node->in[0], *gain = node->in[1], *bias = node->in[2];
    const size_t D = (size_t)x->cols;
    for (size_t t = first; t < first + n; t++) {
        const size_t at = t * D;
        if (y->dx)
            ctx->kernels->norm_backward(x->dx + at, node->beta[0], x->x + at, y->dx + at, gain->x,
                kept->mean[t], kept->inv[t], D);
        else
            ctx->kernels->norm_forward(y->x + at, x->x + at, gain->x, bias->x, TMOEI_NORM_EPSILON,
                kept->mean + t, kept->inv + t, D);
    }
}

static void tmoei_norm_columns(const tmoe_ctx *ctx, const void *job, size_t first, size_t n)
{
    const tmoei_node *node = (const tmoei_node *)job;
    const tmoei_norm_kept *kept = (const tmoei_norm_kept *)node->kept;
    const tmoe_tensor *y = node->y, *x = node->in[0];
    float *dgain = tmoei_grad(node, 1), *dbias = tmoei_grad(node, 2);
    if (dgain) dgain += first;
    if (dbias) dbias += first;
    for (size_t t = 0; t < (size_t)x->rows; t++) {
        const size_t at = t * (size_t)x->cols + first;
        ctx->kernels->norm_parameters(dgain, dbias, x->x + at, y->dx + at, kept->mean[t],
            kept->inv[t], n);
    }
}

static void tmoei_layer_norm_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoe_tensor *x = node->in[0];
    const float *dgain = tmoei_grad_to_add(node, 1), *dbias = tmoei_grad_to_add(node, 2);
    if (x->wants_grad) tmoei_each_row(tape, x, tmoei_norm_rows, node);
    if (dgain || dbias)
        tmoei_sweep(tape->ctx, (size_t)x->cols, TMOEI_COLUMNS, tmoei_norm_columns, node);
}

TMOE_DEF tmoe_tensor *tmoe_layer_norm(tmoe_tape *tape, tmoe_tensor *x, tmoe_tensor *gain,
    tmoe_tensor *bias)
{
    tmoe_tensor *in[3] = { x, gain, bias };
    if (!x || !gain || !bias || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_SHAPE_RULE(tape,
        gain->rows == 1 && gain->cols == x->cols && bias->rows == 1 && bias->cols == x->cols,
        "layer_norm: x (%d,%d), gain (%d,%d), bias (%d,%d); gain and bias must be (1,%d)", x->rows,
        x->cols, gain->rows, gain->cols, bias->rows, bias->cols, x->cols);

    const size_t T = (size_t)x->rows;
    tmoe_tensor *y = tmoei_tensor_new(tape, x->rows, x->cols, NULL);
    const tmoei_norm_kept kept = { tmoei_floats(tape, T), tmoei_floats(tape, T) };
    if (!y || !kept.mean || !kept.inv) return NULL;

    const tmoei_node node = tmoei_unrecorded(y, in, &kept);
    tmoei_each_row(tape, x, tmoei_norm_rows, &node);
    return tmoei_record(tape, y, tmoei_layer_norm_backward, TMOEI_HAND_NONE, &kept, sizeof kept, in,
        3);
}

/* ---- normalize ----
 *   forward   y = x / |x|, row by row; 0 where x is 0
 *   backward  dx (+)= (dy - y <y, dy>) / |x|
 *   keeps     1/|x| of each row */
#define TMOEI_NORMALIZE_DOT 1024 /* terms of a sum in float */

/* Forward, or backward where y has a dx, which it overwrites. */
static void tmoei_normalize_rows(const tmoe_ctx *ctx, const void *job, size_t first, size_t n)
{
    const tmoei_node *node = (const tmoei_node *)job;
    const tmoe_tensor *y = node->y, *x = node->in[0];
    float *inverse = *(float *const *)node->kept;
    const size_t D = (size_t)x->cols;
    for (size_t t = first; t < first + n; t++) {
        const size_t at = t * D;
        if (y->dx) {
            const double along = tmoei_dot(ctx, y->x + at, y->dx + at, D, TMOEI_NORMALIZE_DOT);
            ctx->kernels->scale_add(y->dx + at, 1.0f, (float)-along, y->x + at, D);
            ctx->kernels->scale_add(x->dx + at, node->beta[0], inverse[t], y->dx + at, D);
        } else {
            const double squares = tmoei_dot(ctx, x->x + at, x->x + at, D, TMOEI_NORMALIZE_DOT);
            inverse[t] = squares > 0.0 ? (float)(1.0 / sqrt(squares)) : 0.0f;
            ctx->kernels->scale_add(y->x + at, 0.0f, inverse[t], x->x + at, D);
        }
    }
}

static void tmoei_normalize_backward(tmoe_tape *tape, tmoei_node *node)
{
    if (node->in[0]->wants_grad) tmoei_each_row(tape, node->in[0], tmoei_normalize_rows, node);
}

TMOE_DEF tmoe_tensor *tmoe_normalize(tmoe_tape *tape, tmoe_tensor *x)
{
    if (!x || tape->ctx->error != TMOE_OK) return NULL;
    tmoe_tensor *y = tmoei_tensor_new(tape, x->rows, x->cols, NULL);
    float *inverse = tmoei_floats(tape, (size_t)x->rows);
    if (!y || !inverse) return NULL;

    const tmoei_node node = tmoei_unrecorded(y, &x, &inverse);
    tmoei_each_row(tape, x, tmoei_normalize_rows, &node);
    return tmoei_record(tape, y, tmoei_normalize_backward, TMOEI_HAND_NONE, &inverse,
        sizeof inverse, &x, 1);
}

/* ---- attention ----
 *   forward   s = q k^T / sqrt(W), W = D/H, and -inf where the mask hides a key;
 *             p = exp(s - lse),  lse = log sum_j exp s_j;  y = p v
 *   backward  dp = dy v^T;  ds = p * (dp - delta),  delta = rowsum(dp * p) = <dy, y>;
 *             dq (+)= ds k / sqrt(W);  dk (+)= ds^T q / sqrt(W);  dv (+)= p^T dy
 *   keeps     lse. p is computed again, so memory does not grow with T * S (Dao 2022).
 * A chunk of work is one head of one sequence: T rows of q, S keys. It takes q in blocks of rows,
 * so that the scores of a block stay in the lane's cache. With a causal mask row t sees the keys up
 * to t + (S - T). */
typedef struct tmoei_attention_head {
    const tmoe_ctx *ctx;
    int lane, causal;
    tmoei_matrix q, k, v;                 /* (T, W), (S, W), (S, W) */
    size_t y_stride;                      /* of y and dy */
    float *y, *lse;                       /* (T, W), (T); lse NULL: no backward pass follows */
    const float *dy;                      /* NULL in the forward pass */
    float *dq, *dk, *dv, beta_q, beta_kv; /* like q, k, v. dq, or dk with dv, NULL: not wanted */
} tmoei_attention_head;

#define TMOEI_DOT_ROWS 4 /* so few rows of scores are dot products: packing would cost more */
/* In a lane's scratch memory, behind what products use: two blocks of TMOEI_SCORES floats. */
#define TMOEI_SCORES_AT (TMOEI_LANE_FLOATS - 2 * (size_t)TMOEI_SCORES)

static tmoei_matrix tmoei_rows(tmoei_matrix matrix, int first, int count)
{
    matrix.x += (size_t)first * matrix.stride;
    matrix.rows = count;
    return matrix;
}

/* How many rows the block that begins at row `first` has. */
static int tmoei_block_rows(const tmoei_attention_head *a, int first)
{
    const int rows = tmoei_least(TMOEI_SCORES / a->k.rows, TMOEI_LANE_ROWS);
    return tmoei_least(a->q.rows - first, rows);
}

/* How many keys the rows before row t see. */
static int tmoei_keys_seen(const tmoei_attention_head *a, int t)
{
    const int T = a->q.rows, S = a->k.rows;
    return a->causal ? tmoei_least(S, t + S - T) : S;
}

/* Rows first .. first + n - 1. */
static void tmoei_attention_forward(const tmoei_attention_head *a, int first, int n)
{
    const tmoei_kernels *kernels = a->ctx->kernels;
    const int seen = tmoei_keys_seen(a, first + n);
    const size_t W = (size_t)a->q.cols, width = (size_t)seen;
    const float scale = 1.0f / sqrtf((float)a->q.cols);
    const tmoei_matrix q = tmoei_rows(a->q, first, n);
    const tmoei_matrix k = tmoei_rows(a->k, 0, seen), v = tmoei_rows(a->v, 0, seen);
    float *p = a->ctx->lane_scratch[a->lane] + TMOEI_SCORES_AT;
    float *y = a->y + (size_t)first * a->y_stride;

    /* q k^T */
    const tmoei_output scores = tmoei_output_of(p, width, 0.0f);
    if (n > TMOEI_DOT_ROWS)
        tmoei_gemm_lane(a->ctx, a->lane, q, tmoei_transposed(k), scores);
    else
        kernels->dots(&q, &k, &scores);

    /* p = exp(s - lse), and 0 for the keys that a row does not see */
    for (int t = 0; t < n; t++) {
        float *row = p + (size_t)t * width;
        const size_t own = (size_t)tmoei_keys_seen(a, first + t + 1);
        const float most = scale * kernels->maximum(row, own);
        const float sum = kernels->exp_sum(row, row, scale, most, own);
        kernels->scale_add(row, 0.0f, 1.0f / sum, row, own);
        memset(row + own, 0, (width - own) * sizeof(float));
        if (a->lse) a->lse[first + t] = most + logf(sum);
    }

    /* y = p v */
    if (n > TMOEI_DOT_ROWS)
        tmoei_gemm_lane(a->ctx, a->lane, tmoei_matrix_of(p, n, seen, width), v,
            tmoei_output_of(y, a->y_stride, 0.0f));
    else
        for (size_t t = 0; t < (size_t)n; t++)
            kernels->merge(y + t * a->y_stride, 0, v.x, v.stride, p + t * width, seen, W);
}

/* Rows first .. first + n - 1. p and ds are transposed here, a line for each key: the products for
 * dk and dv then read them as they lie. */
static void tmoei_attention_backward(const tmoei_attention_head *a, int first, int n)
{
    const tmoe_ctx *ctx = a->ctx;
    const int seen = tmoei_keys_seen(a, first + n), W = a->q.cols, lane = a->lane;
    const size_t width = (size_t)n, at = (size_t)first * a->y_stride;
    const float scale = 1.0f / sqrtf((float)W);
    const tmoei_matrix q = tmoei_rows(a->q, first, n);
    const tmoei_matrix k = tmoei_rows(a->k, 0, seen), v = tmoei_rows(a->v, 0, seen);
    const tmoei_matrix dy = tmoei_matrix_of(a->dy + at, n, W, a->y_stride);
    float *p = ctx->lane_scratch[lane] + TMOEI_SCORES_AT, *ds = p + TMOEI_SCORES;
    const tmoei_matrix p_view = tmoei_matrix_of(p, seen, n, width);
    const tmoei_matrix ds_view = tmoei_matrix_of(ds, seen, n, width);

    /* delta = <dy, y> */
    float delta[TMOEI_LANE_ROWS];
    for (size_t t = 0; t < width; t++)
        delta[t] = ctx->kernels->dot(dy.x + t * dy.stride, a->y + at + t * dy.stride, (size_t)W);

    /* k q^T and v dy^T, then p = exp(s - lse) and ds = p * (dp - delta) / sqrt(W) over them */
    tmoei_gemm_lane(ctx, lane, k, tmoei_transposed(q), tmoei_output_of(p, width, 0.0f));
    tmoei_gemm_lane(ctx, lane, v, tmoei_transposed(dy), tmoei_output_of(ds, width, 0.0f));
    for (int key = 0; key < seen; key++) {
        float *p_row = p + (size_t)key * width, *ds_row = ds + (size_t)key * width;
        size_t hidden = 0; /* the causal mask hides this key from the block's first rows */
        if (a->causal && key > seen - n) hidden = (size_t)(key - (seen - n));
        memset(p_row, 0, hidden * sizeof(float));
        memset(ds_row, 0, hidden * sizeof(float));
        ctx->kernels->softmax_backward(p_row + hidden, ds_row + hidden,
            a->lse + (size_t)first + hidden, delta + hidden, scale, width - hidden);
    }

    /* dq (+)= ds k;  dk (+)= ds^T q;  dv (+)= p^T dy;  later blocks add to dk and dv */
    if (a->dq)
        tmoei_gemm_lane(ctx, lane, tmoei_transposed(ds_view), k,
            tmoei_output_of(a->dq + (size_t)first * q.stride, q.stride, a->beta_q));
    if (a->dk) {
        const float beta = first > 0 ? 1.0f : a->beta_kv;
        tmoei_gemm_lane(ctx, lane, ds_view, q, tmoei_output_of(a->dk, k.stride, beta));
        tmoei_gemm_lane(ctx, lane, p_view, dy, tmoei_output_of(a->dv, v.stride, beta));
    }
}

/* All blocks of a head: forward, or backward where there is a dy. */
static void tmoei_attention_blocks(const tmoei_attention_head *a)
{
    /* Keys that the first block does not see (causal) begin with zeros: later blocks add. */
    if (a->dk && a->beta_kv == 0.0f) {
        const int seen = a->q.rows > 0 ? tmoei_keys_seen(a, tmoei_block_rows(a, 0)) : 0;
        for (size_t key = (size_t)seen; key < (size_t)a->k.rows; key++) {
            memset(a->dk + key * a->k.stride, 0, (size_t)a->k.cols * sizeof(float));
            memset(a->dv + key * a->v.stride, 0, (size_t)a->k.cols * sizeof(float));
        }
    }

    int first = 0;
    while (first < a->q.rows) {
        const int n = tmoei_block_rows(a, first);
        if (a->dy)
            tmoei_attention_backward(a, first, n);
        else
            tmoei_attention_forward(a, first, n);
        first += n;
    }
}

typedef struct tmoei_attention_kept {
    const tmoe_ctx *ctx;
    int heads, sequences, causal;
    const int *q_offsets, *kv_offsets;
    float *lse;
} tmoei_attention_kept;

/* One head of one sequence: forward, or backward where y has a dx. */
static void tmoei_attention_chunk(void *arg, int chunk, int lane)
{
    const tmoei_node *node = (const tmoei_node *)arg;
    const tmoei_attention_kept *kept = (const tmoei_attention_kept *)node->kept;
    const tmoe_tensor *y = node->y, *q = node->in[0], *kv = node->in[1];
    const int sequence = chunk / kept->heads, head = chunk % kept->heads;
    const int *q_offsets = kept->q_offsets + sequence, *kv_offsets = kept->kv_offsets + sequence;
    const int T = q_offsets[1] - q_offsets[0], S = kv_offsets[1] - kv_offsets[0];
    const int D = y->cols, W = D / kept->heads;

    /* where the head's first elements are: q and kv are [q | k | v], or q and [k | v] */
    const size_t q_row = (size_t)q_offsets[0], column = (size_t)(head * W), d = (size_t)D;
    const size_t q_at = q_row * (size_t)q->cols + column, y_at = q_row * d + column;
    const size_t kv_at = (size_t)kv_offsets[0] * (size_t)kv->cols + column;
    const size_t k_at = q == kv ? kv_at + d : kv_at, v_at = k_at + d;

    tmoei_attention_head a;
    memset(&a, 0, sizeof a);
    a.ctx = kept->ctx;
    a.lane = lane;
    a.causal = kept->causal;
    a.q = tmoei_matrix_of(q->x + q_at, T, W, (size_t)q->cols);
    a.k = tmoei_matrix_of(kv->x + k_at, S, W, (size_t)kv->cols);
    a.v = tmoei_matrix_of(kv->x + v_at, S, W, (size_t)kv->cols);
    a.y = y->x + y_at;
    a.y_stride = d;
    if (kept->lse) a.lse = kept->lse + q_row * (size_t)kept->heads + (size_t)(head * T);
    if (y->dx) {
        a.dy = y->dx + y_at;
        a.beta_q = node->beta[0];
        a.beta_kv = node->beta[kv != q]; /* self-attention: beta of the one input */
        if (q->wants_grad) a.dq = q->dx + q_at;
        if (kv->wants_grad) {
            a.dk = kv->dx + k_at;
            a.dv = kv->dx + v_at;
        }
    }
    tmoei_attention_blocks(&a);
}

static void tmoei_attention_node_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoei_attention_kept *kept = (const tmoei_attention_kept *)node->kept;
    tmoei_parallel(tape->ctx, tmoei_attention_chunk, node, kept->sequences * kept->heads);
}

/* Offsets begin at 0 and rise; every sequence has keys, at most as many as a lane has room for. */
static int tmoei_offsets_fit(int sequences, const int *q_offsets, const int *kv_offsets, int causal)
{
    if (!q_offsets || !kv_offsets || q_offsets[0] != 0 || kv_offsets[0] != 0) return 0;
    for (int i = 0; i < sequences; i++) {
        if (q_offsets[i + 1] < q_offsets[i] || kv_offsets[i + 1] <= kv_offsets[i]) return 0;
        const int T = q_offsets[i + 1] - q_offsets[i], S = kv_offsets[i + 1] - kv_offsets[i];
        if (S > TMOEI_SCORES || (causal && T > S)) return 0;
    }
    return 1;
}

TMOE_DEF tmoe_tensor *tmoe_attention(tmoe_tape *tape, tmoe_tensor *q, tmoe_tensor *kv, int heads,
    int sequences, const int *q_offsets, const int *kv_offsets, int causal)
{
    tmoe_tensor *in[2] = { q, kv };
    if (!q || !kv || tape->ctx->error != TMOE_OK) return NULL;
    const int self = q == kv, D = self ? q->cols / 3 : q->cols;
    TMOEI_SHAPE_RULE(tape,
        heads >= 1 && D % heads == 0 && kv->cols == (self ? 3 * D : 2 * D) && sequences >= 1
            && tmoei_offsets_fit(sequences, q_offsets, kv_offsets, causal)
            && q_offsets[sequences] == q->rows && kv_offsets[sequences] == kv->rows,
        "attention: q (%d,%d), kv (%d,%d), %d heads, %d sequences; self (T,3D), cross (T,D) and "
        "(S,2D), heads divide D, offsets rise from 0 to the last row, causal: no fewer keys than "
        "rows; at most %d keys a sequence",
        q->rows, q->cols, kv->rows, kv->cols, heads, sequences, TMOEI_SCORES);

    tmoe_tensor *y = tmoei_tensor_new(tape, q->rows, D, NULL);
    if (!y) return NULL;
    tmoei_attention_kept kept;
    kept.ctx = tape->ctx;
    kept.heads = heads;
    kept.sequences = sequences;
    kept.causal = causal;
    kept.q_offsets = q_offsets;
    kept.kv_offsets = kv_offsets;
    kept.lse = NULL;
    if (tmoei_wants_grad(tape, in, 2)) {
        kept.lse = tmoei_floats(tape, (size_t)q->rows * (size_t)heads);
        if (!kept.lse) return NULL;
    }

    tmoei_node node = tmoei_unrecorded(y, in, &kept);
    if (!tape->dry) tmoei_parallel(tape->ctx, tmoei_attention_chunk, &node, sequences * heads);
    return tmoei_record(tape, y, tmoei_attention_node_backward, TMOEI_HAND_NONE, &kept, sizeof kept,
        in, 2);
}

/* ---- rotary positions ----
 *   forward   with a = p base^(-2i/W), j = i + W/2, for every pair of a head at position p:
 *             y_i = x_i cos a - x_j sin a;  y_j = x_j cos a + x_i sin a;  other columns y = x
 *   backward  dx (+)= dy, turned by -a */
static void tmoei_rotary_fill(float *table, int positions, int width, float base)
{
    const int half = width / 2;
    for (int i = 0; i < half; i++) {
        const double turn = pow((double)base, -2.0 * i / width);
        float *at = table + i;
        for (int p = 0; p < positions; p++) {
            at[0] = (float)cos(p * turn);
            at[half] = (float)sin(p * turn);
            at += width;
        }
    }
}

TMOE_DEF tmoe_result tmoe_rotary_table(tmoe_ctx *ctx, float *table, int positions, int width,
    float base)
{
    tmoei_begin(ctx);
    if (!table || positions < 1 || width < 2 || width % 2 != 0 || !(base > 1.0f))
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "rotary_table: %d positions of width %d, base %g%s; at least one, an even width, a "
            "base above 1, and memory",
            positions, width, (double)base, table ? "" : ", at NULL");
    tmoei_rotary_fill(table, positions, width, base);
    return TMOE_OK;
}

typedef struct tmoei_rotary_job {
    float *y;
    const float *x; /* y itself: turned in place */
    const float *table;
    const int *position_ids;
    float direction; /* 1; -1 turns back */
    size_t half, heads;
    size_t cols; /* of x and y */
} tmoei_rotary_job;

static void tmoei_rotary_rows(const tmoe_ctx *ctx, const void *job, size_t first, size_t n)
{
    const tmoei_rotary_job *j = (const tmoei_rotary_job *)job;
    const size_t width = 2 * j->half, turned = j->heads * width;
    for (size_t t = first; t < first + n; t++) {
        const float *x = j->x + t * j->cols, *row = j->table + (size_t)j->position_ids[t] * width;
        float *y = j->y + t * j->cols;
        ctx->kernels->rotary(y, x, row, j->direction, j->half, j->heads);
        if (y != x) memcpy(y + turned, x + turned, (j->cols - turned) * sizeof(float));
    }
}

static void tmoei_rotary_backward(tmoe_tape *tape, tmoei_node *node)
{
    tmoei_rotary_job job = *(const tmoei_rotary_job *)node->kept;
    job.x = job.y = node->y->dx;
    job.direction = -1.0f;
    tmoei_each_row(tape, node->y, tmoei_rotary_rows, &job);
    tmoei_accumulate(tape, node, 0, 1.0f, node->y->dx);
}

/* in_place: y takes x's memory. Only where nothing else reads x's values, as those of a
 * tmoe_linear without activation, which its backward function does not read. */
static tmoe_tensor *tmoei_rotary(tmoe_tape *tape, tmoe_tensor *x, int columns, tmoe_tensor *table,
    const int *position_ids, int in_place)
{
    if (!x || !table || tape->ctx->error != TMOE_OK) return NULL;
    const int W = table->cols;
    TMOEI_SHAPE_RULE(tape,
        W % 2 == 0 && columns >= 1 && columns <= x->cols && columns % W == 0 && position_ids,
        "rotary: %d columns of x (%d,%d), table (%d,%d)%s; heads of an even width that is the "
        "table's, and a position for each row",
        columns, x->rows, x->cols, table->rows, W, position_ids ? "" : ", no positions");
    for (int t = 0; t < x->rows; t++)
        TMOEI_ARGUMENT_RULE(tape, position_ids[t] >= 0 && position_ids[t] < table->rows,
            "rotary: row %d has position %d; 0 <= position < %d", t, position_ids[t], table->rows);

    tmoe_tensor *y = tmoei_tensor_new(tape, x->rows, x->cols, in_place ? x->x : NULL);
    if (!y) return NULL;
    tmoei_rotary_job job;
    job.y = y->x;
    job.x = x->x;
    job.table = table->x;
    job.position_ids = position_ids;
    job.direction = 1.0f;
    job.half = (size_t)W / 2;
    job.heads = (size_t)(columns / W);
    job.cols = (size_t)x->cols;
    tmoei_each_row(tape, x, tmoei_rotary_rows, &job);
    return tmoei_record(tape, y, tmoei_rotary_backward, 0, &job, sizeof job, &x, 1);
}

TMOE_DEF tmoe_tensor *tmoe_rotary(tmoe_tape *tape, tmoe_tensor *x, int columns, tmoe_tensor *table,
    const int *position_ids)
{
    return tmoei_rotary(tape, x, columns, table, position_ids, 0);
}

/* ---- embedding ----
 *   forward   y_t = scale * table[ids_t] + positions[position_ids_t]
 *   backward  dtable[ids_t] += scale * dy_t;  dpositions[position_ids_t] += dy_t
 * The backward pass splits columns, not rows: two threads never write to one element, and the order
 * of the sums is fixed. */
typedef struct tmoei_embedding_kept {
    const int *ids, *position_ids;
    float scale;
} tmoei_embedding_kept;

#define TMOEI_EMBEDDING_COLUMNS 64 /* four cache lines of a row */

static void tmoei_embedding_rows(const tmoe_ctx *ctx, const void *job, size_t first, size_t n)
{
    const tmoei_node *node = (const tmoei_node *)job;
    const tmoei_embedding_kept *kept = (const tmoei_embedding_kept *)node->kept;
    const tmoe_tensor *table = node->in[0], *positions = node->in[1];
    const size_t D = (size_t)table->cols;
    for (size_t t = first; t < first + n; t++) {
        float *y = node->y->x + t * D;
        ctx->kernels->scale_add(y, 0.0f, kept->scale, table->x + (size_t)kept->ids[t] * D, D);
        if (positions)
            ctx->kernels->scale_add(y, 1.0f, 1.0f, positions->x + (size_t)kept->position_ids[t] * D,
                D);
    }
}

static void tmoei_embedding_columns(const tmoe_ctx *ctx, const void *job, size_t first, size_t n)
{
    const tmoei_node *node = (const tmoei_node *)job;
    const tmoei_embedding_kept *kept = (const tmoei_embedding_kept *)node->kept;
    float *dtable = tmoei_grad(node, 0), *dpositions = tmoei_grad(node, 1);
    const size_t D = (size_t)node->y->cols;
    for (size_t t = 0; t < (size_t)node->y->rows; t++) {
        const float *dy = node->y->dx + t * D + first;
        if (dtable)
            ctx->kernels->scale_add(dtable + (size_t)kept->ids[t] * D + first, 1.0f, kept->scale,
                dy, n);
        if (dpositions)
            ctx->kernels->scale_add(dpositions + (size_t)kept->position_ids[t] * D + first, 1.0f,
                1.0f, dy, n);
    }
}

static void tmoei_embedding_backward(tmoe_tape *tape, tmoei_node *node)
{
    (void)tmoei_grad_to_add(node, 0);
    (void)tmoei_grad_to_add(node, 1);
    tmoei_sweep(tape->ctx, (size_t)node->y->cols, TMOEI_EMBEDDING_COLUMNS, tmoei_embedding_columns,
        node);
}

TMOE_DEF tmoe_tensor *tmoe_embedding(tmoe_tape *tape, tmoe_tensor *table, int count, const int *ids,
    float scale, tmoe_tensor *positions, const int *position_ids)
{
    tmoe_tensor *in[2] = { table, positions };
    const tmoei_embedding_kept kept = { ids, position_ids, scale };
    if (!table || tape->ctx->error != TMOE_OK) return NULL;
    const int V = table->rows, D = table->cols, P = positions ? positions->rows : 1;
    TMOEI_SHAPE_RULE(tape,
        count >= 1 && ids && (!positions || (positions->cols == D && position_ids)),
        "embedding: %d ids, table (%d,%d), positions (%d,%d); at least one id and equal widths",
        count, V, D, P, positions ? positions->cols : D);
    for (int t = 0; t < count; t++) {
        const int id = ids[t], place = positions ? position_ids[t] : 0;
        TMOEI_ARGUMENT_RULE(tape, id >= 0 && id < V && place >= 0 && place < P,
            "embedding: token %d has id %d and position %d; 0 <= id < %d, 0 <= position < %d", t,
            id, place, V, P);
    }

    tmoe_tensor *y = tmoei_tensor_new(tape, count, D, NULL);
    if (!y) return NULL;
    const tmoei_node node = tmoei_unrecorded(y, in, &kept);
    tmoei_each_row(tape, y, tmoei_embedding_rows, &node);
    return tmoei_record(tape, y, tmoei_embedding_backward, TMOEI_HAND_NONE, &kept, sizeof kept, in,
        2);
}

/* ---- cross entropy with label smoothing ----
 *   forward   lse = log sum_v exp x_v;
 *             loss = weight * sum over rows of (1-s) (lse - x_target) + s (lse - mean_v x_v)
 *   backward  dx_v = weight * (exp(x_v - lse) - s / V - (1-s) [v = target])
 *   keeps     lse of each row
 * The gradient is written over the logits, the largest matrix of a step, if nothing else needs
 * them. */
typedef struct tmoei_cross_entropy_kept {
    const int *targets;
    float smoothing, weight;
    float *lse, *row_loss; /* (T) */
} tmoei_cross_entropy_kept;

typedef struct tmoei_cross_entropy_job {
    const tmoe_tensor *logits;
    tmoei_cross_entropy_kept kept;
    float *dlogits; /* like the logits; NULL in the forward pass */
} tmoei_cross_entropy_job;

static void tmoei_cross_entropy_rows(const tmoe_ctx *ctx, const void *job, size_t first, size_t n)
{
    const tmoei_cross_entropy_job *j = (const tmoei_cross_entropy_job *)job;
    const size_t V = (size_t)j->logits->cols;
    const float s = j->kept.smoothing, weight = j->kept.weight;
    float *lse = j->kept.lse;

    for (size_t t = first; t < first + n; t++) {
        const float *x = j->logits->x + t * V;
        float *dx = j->dlogits ? j->dlogits + t * V : NULL;
        const int target = j->kept.targets[t];
        if (target < 0) {
            if (dx) memset(dx, 0, V * sizeof(float));
            j->kept.row_loss[t] = 0.0f;
        } else if (dx) {
            ctx->kernels->softmax_gradient(dx, x, lse[t], s / (float)V, weight, V);
            dx[target] -= weight * (1.0f - s);
        } else {
            lse[t] = tmoei_log_sum_exp(ctx, x, (int)V);
            const float mean = s > 0.0f ? ctx->kernels->sum(x, V) / (float)V : 0.0f;
            j->kept.row_loss[t] = (1.0f - s) * (lse[t] - x[target]) + s * (lse[t] - mean);
        }
    }
}

/* A first contribution is written in place; a further one is made beside it and added. */
static void tmoei_cross_entropy_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoe_tensor *x = node->in[0];
    tmoei_cross_entropy_job job = { x, *(const tmoei_cross_entropy_kept *)node->kept, x->dx };
    job.kept.weight *= node->y->dx[0];
    if (node->beta[0] != 0.0f) job.dlogits = tmoei_floats(tape, tmoei_elements(x));
    if (!job.dlogits) return;
    tmoei_each_row(tape, x, tmoei_cross_entropy_rows, &job);
    tmoei_accumulate(tape, node, 0, 1.0f, job.dlogits);
}

TMOE_DEF tmoe_tensor *tmoe_cross_entropy(tmoe_tape *tape, tmoe_tensor *logits, const int *targets,
    float smoothing, float weight)
{
    if (!logits || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_ARGUMENT_RULE(tape, targets && smoothing >= 0.0f && smoothing < 1.0f,
        "cross_entropy: smoothing %g; 0 <= smoothing < 1 and targets must be given",
        (double)smoothing);
    for (int t = 0; t < logits->rows; t++)
        TMOEI_ARGUMENT_RULE(tape, targets[t] < logits->cols,
            "cross_entropy: target %d of row %d; target < V = %d", targets[t], t, logits->cols);

    const size_t T = (size_t)logits->rows;
    tmoe_tensor *y = tmoei_tensor_new(tape, 1, 1, NULL);
    const tmoei_cross_entropy_kept kept = { targets, smoothing, weight, tmoei_floats(tape, T),
        tmoei_floats(tape, T) };
    if (!y || !kept.lse || !kept.row_loss) return NULL;

    if (!tape->dry) {
        const tmoei_float_mode mode = tmoei_float_mode_enter();
        const tmoei_cross_entropy_job job = { logits, kept, NULL };
        double sum = 0.0; /* T small numbers of equal sign */
        tmoei_each_row(tape, logits, tmoei_cross_entropy_rows, &job);
        for (size_t t = 0; t < T; t++) sum += (double)kept.row_loss[t];
        y->x[0] = (float)(sum * (double)weight);
        tmoei_float_mode_leave(mode);
    }

    /* No later backward function reads the logits if the newest node is the linear layer that made
     * them: its backward function does not read its own result. */
    const int unread =
        tape->last && tape->last->y == logits && tape->last->backward == tmoei_linear_backward;
    return tmoei_record(tape, y, tmoei_cross_entropy_backward,
        unread ? TMOEI_HAND_VALUES : TMOEI_HAND_NONE, &kept, sizeof kept, &logits, 1);
}

/* ---- element by element ----
 *   activate  y = f(x)    dx (+)= dy f'(x)
 *   add       y = a + b   da (+)= dy;      db (+)= dy, summed over rows where b is one row
 *   multiply  y = a * b   da (+)= dy * b;  db (+)= dy * a, likewise
 *   sum       y = sum x   dx (+)= dy, the same for all elements
 * Routers use add and multiply on matrices of a few hundred numbers: one lane does them. */
static void tmoei_activate_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoe_activation f = *(const tmoe_activation *)node->kept;
    tmoe_tensor *y = node->y;
    tmoei_activation_apply(tape->ctx, f, y->dx, y->dx, node->in[0]->x, tmoei_elements(y));
    tmoei_accumulate(tape, node, 0, 1.0f, y->dx);
}

TMOE_DEF tmoe_tensor *tmoe_activate(tmoe_tape *tape, tmoe_tensor *x, tmoe_activation f)
{
    if (!x || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_ARGUMENT_RULE(tape, (unsigned)f <= (unsigned)TMOE_SIGMOID,
        "activate: f is %d; must be one of tmoe_activation", (int)f);
    tmoe_tensor *y = tmoei_tensor_new(tape, x->rows, x->cols, NULL);
    if (y && !tape->dry) tmoei_activation_apply(tape->ctx, f, y->x, NULL, x->x, tmoei_elements(y));
    return tmoei_record(tape, y, tmoei_activate_backward, 0, &f, sizeof f, &x, 1);
}

static void tmoei_binary_backward(tmoe_tape *tape, tmoei_node *node)
{
    const int multiply = *(const int *)node->kept;
    const size_t rows = (size_t)node->y->rows, cols = (size_t)node->y->cols;
    (void)tape;
    for (int which = 0; which < 2; which++) {
        const tmoe_tensor *in = node->in[which], *other = node->in[1 - which];
        if (in->dx == node->y->dx) continue; /* the same memory: taken over */
        float *dx = tmoei_grad_to_add(node, which);
        if (!dx) continue;
        for (size_t r = 0; r < rows; r++) {
            const float *dy = node->y->dx + r * cols;
            const float *factor = other->x + (other->rows > 1 ? r * cols : 0);
            float *row = dx + (in->rows > 1 ? r * cols : 0);
            for (size_t c = 0; c < cols; c++) row[c] += multiply ? dy[c] * factor[c] : dy[c];
        }
    }
}

static tmoe_tensor *tmoei_binary(tmoe_tape *tape, tmoe_tensor *a, tmoe_tensor *b, int multiply)
{
    tmoe_tensor *in[2] = { a, b };
    if (!a || !b || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_SHAPE_RULE(tape, a->cols == b->cols && (a->rows == b->rows || b->rows == 1),
        "%s: a (%d,%d), b (%d,%d); b must be like a, or one row", multiply ? "multiply" : "add",
        a->rows, a->cols, b->rows, b->cols);
    tmoe_tensor *y = tmoei_tensor_new(tape, a->rows, a->cols, NULL);
    if (!y) return NULL;

    if (!tape->dry) {
        const tmoei_float_mode mode = tmoei_float_mode_enter();
        const size_t rows = (size_t)a->rows, cols = (size_t)a->cols;
        for (size_t r = 0; r < rows; r++) {
            const float *x = a->x + r * cols, *z = b->x + (b->rows > 1 ? r * cols : 0);
            float *out = y->x + r * cols;
            for (size_t c = 0; c < cols; c++) out[c] = multiply ? x[c] * z[c] : x[c] + z[c];
        }
        tmoei_float_mode_leave(mode);
    }

    /* add hands dy to a; not where b is a itself, whose gradient is twice dy */
    const int hand = !multiply && a != b ? 0 : TMOEI_HAND_NONE;
    return tmoei_record(tape, y, tmoei_binary_backward, hand, &multiply, sizeof multiply, in, 2);
}

TMOE_DEF tmoe_tensor *tmoe_add(tmoe_tape *tape, tmoe_tensor *a, tmoe_tensor *b)
{
    return tmoei_binary(tape, a, b, 0);
}

TMOE_DEF tmoe_tensor *tmoe_multiply(tmoe_tape *tape, tmoe_tensor *a, tmoe_tensor *b)
{
    return tmoei_binary(tape, a, b, 1);
}

static void tmoei_sum_backward(tmoe_tape *tape, tmoei_node *node)
{
    float *dx = tmoei_grad_to_add(node, 0);
    const size_t n = tmoei_elements(node->in[0]);
    (void)tape;
    for (size_t i = 0; i < n; i++) dx[i] += node->y->dx[0];
}

TMOE_DEF tmoe_tensor *tmoe_sum(tmoe_tape *tape, tmoe_tensor *x)
{
    if (!x || tape->ctx->error != TMOE_OK) return NULL;
    tmoe_tensor *y = tmoei_tensor_new(tape, 1, 1, NULL);
    if (!y) return NULL;

    if (!tape->dry) {
        const tmoei_float_mode mode = tmoei_float_mode_enter();
        const size_t n = tmoei_elements(x);
        double sum = 0.0;
        for (size_t i = 0; i < n; i++) sum += (double)x->x[i];
        y->x[0] = (float)sum;
        tmoei_float_mode_leave(mode);
    }
    return tmoei_record(tape, y, tmoei_sum_backward, TMOEI_HAND_NONE, NULL, 0, &x, 1);
}

/* ---- slice, concat, reshape: moving values ----
 *   slice     y = columns first .. first + count - 1 of x   these columns of dx += dy
 *   concat    y = [x_0 | x_1 | ...]                         dx_i (+)= its columns of dy
 *   reshape   y has x's memory and another shape            dx (+)= dy */

/* dst = beta dst + src, cols of each row; row strides in floats */
static void tmoei_copy_columns(const tmoe_tape *tape, int rows, int cols, float *dst,
    int dst_stride, float beta, const float *src, int src_stride)
{
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    for (int r = 0; r < rows; r++) {
        tape->ctx->kernels->scale_add(dst, beta, 1.0f, src, (size_t)cols);
        dst += dst_stride;
        src += src_stride;
    }
    tmoei_float_mode_leave(mode);
}

static void tmoei_slice_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoe_tensor *x = node->in[0], *y = node->y;
    float *dx = tmoei_grad_to_add(node, 0) + *(const int *)node->kept;
    tmoei_copy_columns(tape, x->rows, y->cols, dx, x->cols, 1.0f, y->dx, y->cols);
}

TMOE_DEF tmoe_tensor *tmoe_slice(tmoe_tape *tape, tmoe_tensor *x, int first, int count)
{
    if (!x || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_SHAPE_RULE(tape, first >= 0 && count >= 1 && first <= x->cols - count,
        "slice: %d columns from column %d on of x (%d,%d)", count, first, x->rows, x->cols);
    tmoe_tensor *y = tmoei_tensor_new(tape, x->rows, count, NULL);
    if (y && !tape->dry)
        tmoei_copy_columns(tape, x->rows, count, y->x, count, 0.0f, x->x + first, x->cols);
    return tmoei_record(tape, y, tmoei_slice_backward, TMOEI_HAND_NONE, &first, sizeof first, &x,
        1);
}

static void tmoei_concat_backward(tmoe_tape *tape, tmoei_node *node)
{
    const float *dy = node->y->dx;
    const int stride = node->y->cols;
    for (int i = 0; i < node->count; i++) {
        const int rows = node->in[i]->rows, cols = node->in[i]->cols;
        float *dx = tmoei_grad(node, i);
        if (dx) tmoei_copy_columns(tape, rows, cols, dx, cols, node->beta[i], dy, stride);
        dy += cols;
    }
}

TMOE_DEF tmoe_tensor *tmoe_concat(tmoe_tape *tape, tmoe_tensor *const *parts, int count)
{
    if (tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_SHAPE_RULE(tape, parts && count >= 1, "concat: %d parts; at least one", count);
    int cols = 0;
    for (int i = 0; i < count; i++) {
        if (!parts[i]) return NULL;
        TMOEI_SHAPE_RULE(tape, parts[i]->rows == parts[0]->rows,
            "concat: part %d has %d rows, part 0 has %d; must be equal", i, parts[i]->rows,
            parts[0]->rows);
        cols += parts[i]->cols;
    }
    tmoe_tensor *y = tmoei_tensor_new(tape, parts[0]->rows, cols, NULL);
    if (!y) return NULL;

    if (!tape->dry) {
        float *to = y->x;
        for (int i = 0; i < count; i++) {
            const int own = parts[i]->cols;
            tmoei_copy_columns(tape, y->rows, own, to, cols, 0.0f, parts[i]->x, own);
            to += own;
        }
    }
    return tmoei_record(tape, y, tmoei_concat_backward, TMOEI_HAND_NONE, NULL, 0, parts, count);
}

TMOE_DEF tmoe_tensor *tmoe_reshape(tmoe_tape *tape, tmoe_tensor *x, int rows, int cols)
{
    if (!x || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_SHAPE_RULE(tape,
        rows >= 1 && cols >= 1 && (size_t)rows * (size_t)cols == tmoei_elements(x),
        "reshape: x (%d,%d) to (%d,%d); the number of elements must stay", x->rows, x->cols, rows,
        cols);
    const float scale = 1.0f;
    return tmoei_record(tape, tmoei_tensor_new(tape, rows, cols, x->x), tmoei_affine_backward, 0,
        &scale, sizeof scale, &x, 1);
}

/* ---- dropout ----
 *   forward   y_i = x_i keep_i / (1-p),  keep_i = [hash(key, i) >= p 2^32]
 *   backward  dx_i (+)= dy_i keep_i / (1-p): the mask is made again
 * The counter of an element is its index, so the chunks do not change the mask. */
typedef struct tmoei_drop_job {
    float *y;
    const float *x;
    uint32_t key, limit; /* limit = p 2^32 */
    float scale;
} tmoei_drop_job;

static void tmoei_dropout_sweep(const tmoe_ctx *ctx, const void *job, size_t at, size_t n)
{
    const tmoei_drop_job *s = (const tmoei_drop_job *)job;
    ctx->kernels->dropout(s->y + at, s->x + at, n, (uint32_t)at, s->key, s->limit, s->scale);
}

static void tmoei_dropout_backward(tmoe_tape *tape, tmoei_node *node)
{
    tmoei_drop_job job = *(const tmoei_drop_job *)node->kept;
    job.x = job.y = node->y->dx;
    tmoei_sweep(tape->ctx, tmoei_elements(node->y), TMOEI_SWEEP, tmoei_dropout_sweep, &job);
    tmoei_accumulate(tape, node, 0, 1.0f, node->y->dx);
}

static tmoe_tensor *tmoei_dropout(tmoe_tape *tape, tmoe_tensor *x, float p, uint32_t key)
{
    if (!x || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_ARGUMENT_RULE(tape, p >= 0.0f && p < 1.0f, "dropout: p = %g; 0 <= p < 1", (double)p);
    if (p == 0.0f) return x;
    tmoe_tensor *y = tmoei_tensor_new(tape, x->rows, x->cols, NULL);
    if (!y) return NULL;

    const uint32_t limit = (uint32_t)((double)p * 4294967296.0);
    const tmoei_drop_job job = { y->x, x->x, key, limit, 1.0f / (1.0f - p) };
    if (!tape->dry)
        tmoei_sweep(tape->ctx, tmoei_elements(y), TMOEI_SWEEP, tmoei_dropout_sweep, &job);
    return tmoei_record(tape, y, tmoei_dropout_backward, 0, &job, sizeof job, &x, 1);
}

TMOE_DEF tmoe_tensor *tmoe_dropout(tmoe_tape *tape, tmoe_tensor *x, float p, uint64_t seed,
    uint64_t stream)
{
    return tmoei_dropout(tape, x, p, (uint32_t)tmoei_random(seed, stream, 0));
}

/* #################################################################################################
 * BOOK II: THE METHOD
 *
 * Read this book and you know task-level mixture of experts: how a task becomes a vector, the
 * vector a route, the route a mixture of experts, and how all of it is trained and used. It reads
 * and writes no files. It offers the world:
 *   a model      from a config or from another model: named tensors in one buffer (>>model)
 *   a mix        of experts' parameters or outputs, with the gradient of the route (>>mix)
 *   a pass       of the transformer for one group of texts (>>layers)
 *   a route      of every task, seen or not, and the experts merged by it (>>router)
 *   batches      texts as tokens, packed without padding (>>batches)
 *   a trainer    that takes one step at a time and can be stopped and resumed (>>training)
 *   answers      greedy or by beam search, and likelihoods of given texts (>>inference)
 * ############################################################################################## */

/* ==== >>vectors: what comes in: tokenizers, suites of tasks, task vectors from text =========== */

/* ---- what the method needs of a tokenizer ----
 * Every kind of tokenizer begins with this struct (>>tokenizer has the kind that is built in). */
#define TMOEI_SPECIALS (TMOE_TOKEN_MASK + 1) /* members of tmoe_token */
#define TMOEI_TOKENS_MAX 1000000             /* of a tokenizer that is trained */

struct tmoe_tokenizer {
    tmoe_ctx *ctx;
    int vocabulary;               /* largest id + 1 */
    int specials[TMOEI_SPECIALS]; /* ids by tmoe_token; -1: it has none */
    tmoe_result (*encode)(const tmoe_tokenizer *tokenizer, const char *text, size_t length,
        int flags, int *ids, size_t capacity, size_t *count);
    tmoe_result (*decode)(const tmoe_tokenizer *tokenizer, const int *ids, size_t count, int flags,
        char *text, size_t capacity, size_t *length);
    tmoe_tokenizer *(*copy)(tmoe_ctx *ctx, const tmoe_tokenizer *tokenizer);
    void (*destroy)(tmoe_tokenizer *tokenizer);
};

TMOE_DEF int tmoe_tokenizer_vocabulary(const tmoe_tokenizer *tokenizer)
{
    return tokenizer->vocabulary;
}

TMOE_DEF int tmoe_tokenizer_special(const tmoe_tokenizer *tokenizer, tmoe_token which)
{
    return (int)which >= 0 && (int)which < TMOEI_SPECIALS ? tokenizer->specials[which] : -1;
}

/* Begins a call; returns whether the pointers are sound and only allowed flags are set. */
static int tmoei_tokenizer_call(tmoe_ctx *ctx, const char *name, int pointers, int flags,
    int allowed)
{
    tmoei_begin(ctx);
    if (pointers && !(flags & ~allowed)) return 1;
    (void)tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
        "%s: a NULL that is read or written, or flags %d; may be of %d", name, flags, allowed);
    return 0;
}

TMOE_DEF tmoe_result tmoe_tokenizer_encode(const tmoe_tokenizer *tokenizer, const char *text,
    size_t length, int flags, int *ids, size_t capacity, size_t *count)
{
    const int allowed =
        TMOE_TOKENIZER_SPECIALS | TMOE_TOKENIZER_FIND_SPECIALS | TMOE_TOKENIZER_PREFIX_SPACE;
    const int pointers = (text || !length) && (ids || !capacity) && count;
    if (!tmoei_tokenizer_call(tokenizer->ctx, "tokenizer_encode", pointers, flags, allowed))
        return TMOE_ERR_ARGUMENT;
    return tokenizer->encode(tokenizer, text, length, flags, ids, capacity, count);
}

TMOE_DEF tmoe_result tmoe_tokenizer_decode(const tmoe_tokenizer *tokenizer, const int *ids,
    size_t count, int flags, char *text, size_t capacity, size_t *length)
{
    const int allowed = TMOE_TOKENIZER_SKIP_SPECIALS | TMOE_TOKENIZER_CLEAN_SPACES;
    const int pointers = (ids || !count) && (text || !capacity) && length;
    if (!tmoei_tokenizer_call(tokenizer->ctx, "tokenizer_decode", pointers, flags, allowed))
        return TMOE_ERR_ARGUMENT;
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= tokenizer->vocabulary)
            return tmoei_fail(tokenizer->ctx, TMOE_ERR_ARGUMENT,
                "tokenizer_decode: id %d at place %lu; 0 <= id < %d", ids[i], (unsigned long)i,
                tokenizer->vocabulary);
    return tokenizer->decode(tokenizer, ids, count, flags, text, capacity, length);
}

TMOE_DEF void tmoe_tokenizer_destroy(tmoe_tokenizer *tokenizer)
{
    if (tokenizer) tokenizer->destroy(tokenizer);
}

/* ---- a suite: the list of tasks that >>suite fills ---- */

struct tmoe_suite {
    tmoe_ctx *ctx;
    tmoe_task *tasks;
    int count;
    size_t capacity;
    tmoei_owner own; /* of all texts */
};

/* ---- task vectors from text ----
 * Feature hashing (Weinberger 2009): every word, every character 3-gram and, if wanted, every pair
 * of neighbouring words of the lower-cased instruction adds its weight, with a sign, to one of k
 * places; its hash chooses place and sign. Without pairs "the first word without its last letter"
 * and "the last word without its first letter" are the same.
 * The vector is scaled to length sqrt(k), so that its entries are of size 1 like those of a learned
 * embedding after training. Bytes outside ASCII count as letters, so texts of every script have
 * features. */
#define TMOEI_GRAM_WEIGHT 0.3f /* 5 grams of a 5-letter word have 0.67 of its length */

typedef enum tmoei_feature { /* keeps equal texts of different kinds apart */
    TMOEI_FEATURE_WORD,
    TMOEI_FEATURE_GRAM,
    TMOEI_FEATURE_GRAM_FIRST, /* the gram begins the word; it may be shorter than 3 */
    TMOEI_FEATURE_PAIR        /* two words and what is between them */
} tmoei_feature;

static void tmoei_text_feature(const char *text, size_t n, tmoei_feature kind, float weight, int k,
    float *vector)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325) ^ (uint64_t)kind; /* FNV-1a */
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ tmoei_lower((unsigned char)text[i])) * UINT64_C(0x100000001b3);
    hash = tmoei_mix64(hash); /* similar texts get places far from one another */
    vector[(hash >> 1) % (uint64_t)k] += hash & 1 ? weight : -weight;
}

static double tmoei_text_dot(const float *a, const float *b, int k)
{
    double dot = 0.0;
    for (int j = 0; j < k; j++) dot += (double)a[j] * (double)b[j];
    return dot;
}

static void tmoei_text_vector(const tmoe_config *config, const char *text, float *vector)
{
    const size_t length = strlen(text);
    const int k = config->vector_width;
    size_t at = 0, before = length; /* where the word before begins */
    memset(vector, 0, (size_t)k * sizeof(float));
    while (at < length) {
        const size_t first = at; /* of a word */
        while (at < length && tmoei_is_word_byte((unsigned char)text[at])) {
            const size_t from = at >= first + 2 ? at - 2 : first; /* of the gram that ends here */
            const tmoei_feature kind =
                from == first ? TMOEI_FEATURE_GRAM_FIRST : TMOEI_FEATURE_GRAM;
            tmoei_text_feature(text + from, at - from + 1, kind, TMOEI_GRAM_WEIGHT, k, vector);
            at++;
        }
        if (at > first) {
            tmoei_text_feature(text + first, at - first, TMOEI_FEATURE_WORD, 1.0f, k, vector);
            if (config->word_pairs && before < first)
                tmoei_text_feature(text + before, at - before, TMOEI_FEATURE_PAIR, 1.0f, k, vector);
            before = first;
        }
        at++; /* past the byte that ended the word */
    }

    const double norm = tmoei_text_dot(vector, vector, k);
    if (norm > 0.0)
        for (int j = 0; j < k; j++) vector[j] *= (float)(sqrt((double)k) / sqrt(norm));
}

TMOE_DEF tmoe_result tmoe_text_vector(const tmoe_config *config, const char *text, float *vector)
{
    if (!config || !text || !vector || config->vector_width < 1) return TMOE_ERR_ARGUMENT;
    tmoei_text_vector(config, text, vector);
    return TMOE_OK;
}

/* <a, b> / (|a| |b|), and 0 where one is zero: a text without a word */
static float tmoei_cosine(const float *a, const float *b, int k)
{
    const double aa = tmoei_text_dot(a, a, k), bb = tmoei_text_dot(b, b, k);
    return aa > 0.0 && bb > 0.0 ? (float)(tmoei_text_dot(a, b, k) / sqrt(aa * bb)) : 0.0f;
}

/* ==== >>model: the layout of the one flat buffer of parameters ==============================
 *   theta   [ embeddings, positions, norms | layer 0: shared part, expert 0, ..., expert E-1 |
 *             layer 1 ... | output bias | router | task vectors ]
 * A model with TMOE_POSITION_ROTARY has no positions in it.
 * The trainer's gradients and moments are flat twins of the part that is trained.
 * An expert is one contiguous block with the same inner layout in all experts of a layer. So
 * merging is one sweep, and the optimiser and the all-reduce are one loop each. There are no gaps:
 * a saved file holds the same floats in the same order, and is used as it lies where it can be
 * mapped. */

#define TMOEI_SIZE_MAX 1048576 /* widths, layers, symbols, lengths */
#define TMOEI_ROUTER_HIDDEN_MAX 65536
#define TMOEI_BEAMS_MAX 1024

/* The pieces of a transformer layer in the order they lie in a block. Each weight (a norm's gain)
 * is followed by its bias, so that the bias of `piece` is `piece + 1`. */
#define TMOEI_WITH_BIAS(piece) piece, piece##_BIAS

typedef enum tmoei_piece {
    TMOEI_WITH_BIAS(TMOEI_SELF_QKV),
    TMOEI_WITH_BIAS(TMOEI_SELF_OUT),
    TMOEI_WITH_BIAS(TMOEI_SELF_NORM),
    TMOEI_WITH_BIAS(TMOEI_CROSS_Q),
    TMOEI_WITH_BIAS(TMOEI_CROSS_KV),
    TMOEI_WITH_BIAS(TMOEI_CROSS_OUT),
    TMOEI_WITH_BIAS(TMOEI_CROSS_NORM),
    TMOEI_WITH_BIAS(TMOEI_FC1),
    TMOEI_WITH_BIAS(TMOEI_FC2),
    TMOEI_WITH_BIAS(TMOEI_FFN_NORM),
    TMOEI_PIECES
} tmoei_piece;

/* The tensors outside the layers. POST norms the embedding, PRE what the last layer gives. The
 * output bias is a constant: BART's final_logits_bias. */
typedef enum tmoei_shared {
    TMOEI_TOKENS,
    TMOEI_ENCODER_POSITIONS,
    TMOEI_DECODER_POSITIONS,
    TMOEI_WITH_BIAS(TMOEI_ENCODER_NORM),
    TMOEI_WITH_BIAS(TMOEI_DECODER_NORM),
    TMOEI_ENCODER_TASK,
    TMOEI_DECODER_TASK,
    TMOEI_OUTPUT_BIAS,
    TMOEI_SHARED
} tmoei_shared;

typedef enum tmoei_rate { /* which learning rate a parameter follows */
    TMOEI_RATE_LAYERS,
    TMOEI_RATE_ROUTER,
    TMOEI_RATE_TASKS,
    TMOEI_RATE_SHARED,
    TMOEI_RATE_NONE
} tmoei_rate;

typedef struct tmoei_parameter { /* one named tensor in theta */
    char name[72];
    size_t offset, size;
    int rows, cols;
    tmoei_rate rate;
    int decay;      /* 1: weight decay moves it: matrices, layer positions, task vectors */
    int matrices;   /* that Muon moves: 3 of q, k and v below each other; 0: AdamW moves it */
    int expert;     /* -1: shared by all tasks */
    float init_std; /* > 0: begins normal; < 0: uniform in +- that; 0: all init_value */
    float init_value;
} tmoei_parameter;

typedef struct tmoei_layer {
    int decoder, number, heads; /* number: among the layers of its side */
    int experts;                /* 1: dense */
    int route;                  /* which routed layer this is; -1: dense */
    int rows[TMOEI_PIECES];     /* 0: the layer does not have this piece */
    int cols[TMOEI_PIECES];
    int in_expert[TMOEI_PIECES]; /* 1: in each expert's block; 0: in the shared part */
    size_t offset[TMOEI_PIECES]; /* inside the block or the shared part */
    size_t shared, shared_size;  /* where the shared part begins in theta; its floats */
    size_t block, block_size;    /* where expert 0 begins; floats of an expert */
} tmoei_layer;

struct tmoe_model {
    tmoe_ctx *ctx;
    tmoei_owner own; /* of the memory below, but for a file that theta lies in */

    /* what the model is */
    tmoe_config config;
    tmoe_tokenizer *tokenizer;
    tmoe_generation generation;
    tmoe_task *tasks;   /* (N): name, category, instruction */
    int V, N, L, R;     /* vocabulary; tasks; layers, the encoder's first; routed layers */
    size_t route_width; /* floats of a route, R * E */

    /* the parameters */
    float *theta;
    size_t size;      /* floats in theta */
    uint64_t version; /* raised whenever theta or the mask changes */
    int64_t step;     /* optimiser steps taken: sets the temperature */
    tmoei_layer *layers;
    tmoei_parameter *parameters;
    size_t parameter_capacity;
    int parameter_count;
    int shared[TMOEI_SHARED];   /* indices of the parameters outside the layers; -1: absent */
    float *rotary[2];           /* of ROTARY: tables of the encoder's and the decoder's heads */
    int router_parameter;       /* index of the router's first parameter */
    tmoe_own_router own_router; /* with TMOE_ROUTER_OWN */
    int has_vectors;            /* 1: router or layers read task vectors */
    size_t vectors;             /* where the task vectors (N, k) begin in theta */
    char *mapping;              /* the file that theta lies in, or NULL */
    size_t mapping_size;

    /* routing */
    float *mask;             /* (R, E) added to the logits: 0, or -infinity for a disabled expert */
    float *text_vectors;     /* (N, k): of the tasks' instructions */
    float *asked_vector;     /* (k) scratch: of an instruction that is asked about */
    float *routes;           /* (N, R * E) of evaluation ... */
    uint64_t routes_version; /* ... for this version of the model */

    /* evaluation; the blocks of the last route */
    tmoe_tape *tape;
    float *merged;           /* merged blocks, one behind the other */
    float **blocks;          /* (L): each routed layer's block, in `merged` or in theta ... */
    float *merged_route;     /* ... for this route (R, E) ... */
    uint64_t merged_version; /* ... and this version of the model */
};

/* A tensor that is yet to be added to theta: shared, zero at first; matrices are decayed. */
static tmoei_parameter tmoei_parameter_of(int rows, int cols, tmoei_rate rate)
{
    tmoei_parameter p;
    memset(&p, 0, sizeof p);
    p.rows = rows;
    p.cols = cols;
    p.rate = rate;
    p.decay = rows > 1;
    p.expert = -1;
    return p;
}

/* Adds a named tensor at the end of theta; returns its offset. A failure is the context's. */
static TMOEI_PRINTF(3, 4) size_t
    tmoei_parameter_add(tmoe_model *model, const tmoei_parameter *what, const char *format, ...)
{
    va_list arguments;
    if (model->parameter_count == TMOEI_TENSORS_MAX) {
        (void)tmoei_fail(model->ctx, TMOE_ERR_CONFIG,
            "config: the model has more than %d tensors; fewer layers or experts are needed",
            TMOEI_TENSORS_MAX);
        return 0;
    }
    if (!tmoei_grow(model->ctx, &model->parameters, &model->parameter_capacity,
            (size_t)model->parameter_count + 1, sizeof *model->parameters))
        return 0;
    tmoei_parameter *parameter = &model->parameters[model->parameter_count++];
    *parameter = *what;
    va_start(arguments, format);
    (void)vsnprintf(parameter->name, sizeof parameter->name, format, arguments);
    va_end(arguments);
    parameter->offset = model->size;
    parameter->size = (size_t)what->rows * (size_t)what->cols;
    model->size += parameter->size;
    return parameter->offset;
}

/* Standard deviation at the start of a tensor of `rows` rows: only matrices are random. */
static float tmoei_init_std(const tmoe_model *model, int rows, int fan_in)
{
    const float std = model->config.init_std;
    if (rows == 1) return 0.0f;
    return std > 0.0f ? std : 1.0f / sqrtf((float)fan_in);
}

typedef struct tmoei_shape {
    const char *name;
    int rows, cols;
} tmoei_shape;

/* Adds one part of a layer: expert e's block, or with e = -1 what its experts share. Returns the
 * floats it has. */
static size_t tmoei_layer_plan_part(tmoe_model *model, tmoei_layer *layer, int expert)
{
    const tmoe_config *c = &model->config;
    const int D = c->width, F = layer->decoder ? c->decoder_ffn : c->encoder_ffn;
    const tmoei_shape weights[TMOEI_PIECES / 2] = { /* no rows: a norm */ { "self.qkv", 3 * D, D },
        { "self.out", D, D }, { "self.norm", 0, D }, { "cross.q", D, D }, { "cross.kv", 2 * D, D },
        { "cross.out", D, D }, { "cross.norm", 0, D }, { "fc1", F, D }, { "fc2", D, F },
        { "ffn.norm", 0, D } };
    const size_t start = model->size;
    char owner[24] = "";
    if (layer->experts > 1 && expert >= 0)
        (void)snprintf(owner, sizeof owner, "expert.%d.", expert);

    for (int piece = 0; piece < TMOEI_PIECES; piece++) {
        const tmoei_shape *weight = &weights[piece / 2];
        const int bias = piece % 2, norm = weight->rows == 0;
        const int cross = piece >= TMOEI_CROSS_Q && piece < TMOEI_FC1;
        const int in_expert = c->expert_kind == TMOE_EXPERT_LAYER || piece >= TMOEI_FC1;
        if ((cross && !layer->decoder) || in_expert != (expert >= 0)) continue;

        const int rows = bias || norm ? 1 : weight->rows;
        const int cols = bias && !norm ? weight->rows : weight->cols;
        tmoei_parameter p = tmoei_parameter_of(rows, cols, TMOEI_RATE_LAYERS);
        if (layer->experts > 1) p.expert = expert;
        if (!bias && !norm) p.matrices = 1;
        if (piece == TMOEI_SELF_QKV) p.matrices = 3;
        if (piece == TMOEI_CROSS_KV) p.matrices = 2;
        p.init_std = tmoei_init_std(model, rows, cols);
        p.init_value = norm && !bias ? 1.0f : 0.0f;
        layer->rows[piece] = rows;
        layer->cols[piece] = cols;
        layer->in_expert[piece] = in_expert;
        layer->offset[piece] =
            tmoei_parameter_add(model, &p, "%s.%d.%s%s.%s", layer->decoder ? "decoder" : "encoder",
                layer->number, owner, weight->name, bias ? "bias" : "weight")
            - start;
    }
    return model->size - start;
}

/* Lays out layer `index`: the shared part, then the experts' blocks. */
static void tmoei_layer_plan(tmoe_model *model, int index)
{
    const tmoe_config *c = &model->config;
    tmoei_layer *layer = &model->layers[index];
    const int decoder = index >= c->encoder_layers;
    const int routed =
        c->experts > 1 && (c->expert_places & (decoder ? TMOE_DECODER : TMOE_ENCODER));
    layer->decoder = decoder;
    layer->number = decoder ? index - c->encoder_layers : index;
    layer->heads = decoder ? c->decoder_heads : c->encoder_heads;
    layer->experts = routed ? c->experts : 1;
    layer->route = routed ? model->R++ : -1;

    layer->shared = model->size;
    layer->shared_size = tmoei_layer_plan_part(model, layer, -1);
    layer->block = model->size;
    for (int e = 0; e < layer->experts; e++)
        layer->block_size = tmoei_layer_plan_part(model, layer, e);
}

/* ---- the router's tensors, in the order in which >>router takes them ---- */

#define TMOEI_ROUTER_STD 0.02f /* the paper's, for linear weights and embeddings */

enum {
    TMOEI_ROUTER_HEADS = 4, /* of the transformer router */
    TMOEI_ROUTER_FFN = 64   /* its FFN's width */
};

/* tmoe_router_kind has each family twice: plain, then layer specific. */
typedef enum tmoei_router_family {
    TMOEI_ROUTER_MLP,
    TMOEI_ROUTER_RNN,
    TMOEI_ROUTER_GRU,
    TMOEI_ROUTER_LSTM,
    TMOEI_ROUTER_TRANSFORMER,
    TMOEI_ROUTER_OF_USER
} tmoei_router_family;

static tmoei_router_family tmoei_router_family_of(const tmoe_config *c)
{
    return (tmoei_router_family)((int)c->router / 2);
}

static int tmoei_router_specific(const tmoe_config *c)
{
    return (int)c->router % 2;
}

/* Width of an element of the sequence that all but the MLPs read. */
static int tmoei_router_width(const tmoe_config *c)
{
    return tmoei_router_specific(c) ? c->router_hidden : c->vector_width;
}

/* Adds weight (rows, cols) and bias (rows) of a linear layer, or with rows = 0 a norm's gain and
 * bias (cols). std as in tmoei_parameter; a uniform weight has a uniform bias, as torch's. */
static void tmoei_router_add(tmoe_model *model, const char *name, int rows, int cols, float std)
{
    const int norm = rows == 0;
    tmoei_parameter weight = tmoei_parameter_of(norm ? 1 : rows, cols, TMOEI_RATE_ROUTER);
    tmoei_parameter bias = tmoei_parameter_of(1, norm ? cols : rows, TMOEI_RATE_ROUTER);
    weight.decay = !norm;
    weight.init_std = std;
    weight.init_value = norm ? 1.0f : 0.0f;
    bias.init_std = std < 0.0f ? std : 0.0f;
    (void)tmoei_parameter_add(model, &weight, "router.%s.weight", name);
    (void)tmoei_parameter_add(model, &bias, "router.%s.bias", name);
}

TMOE_DEF void tmoe_ctx_set_router(tmoe_ctx *ctx, const tmoe_own_router *own)
{
    memset(&ctx->router, 0, sizeof ctx->router);
    if (own) ctx->router = *own;
}

/* Notes what is wrong with a router of the user's. */
static void tmoei_own_router_check(const tmoe_own_router *own, char *text, size_t size)
{
    if (!own->logits)
        tmoei_problem(text, size, "router is TMOE_ROUTER_OWN, and tmoe_ctx_set_router gave none");
    for (int i = 0; own->logits && i < own->parameter_count; i++) {
        const tmoe_own_parameter *p = &own->parameters[i];
        int same = 0;
        for (int j = 0; j < i; j++)
            same +=
                p->name && own->parameters[j].name && strcmp(p->name, own->parameters[j].name) == 0;
        if (!p->name || !p->name[0] || same || p->rows < 1 || p->cols < 1
            || !(p->init_std >= 0.0f && p->init_std < FLT_MAX))
            tmoei_problem(text, size,
                "parameter %d of the router, '%.40s' (%d,%d), init_std %g; a name of its own and "
                "at "
                "least (1,1) and 0",
                i, p->name ? p->name : "", p->rows, p->cols, (double)p->init_std);
    }
}

/* Returns whether two routers of users have parameters of the same names and shapes. */
static int tmoei_own_routers_agree(const tmoe_own_router *a, const tmoe_own_router *b)
{
    if (a->parameter_count != b->parameter_count) return 0;
    for (int i = 0; i < a->parameter_count; i++) {
        const tmoe_own_parameter *p = &a->parameters[i], *q = &b->parameters[i];
        if (strcmp(p->name, q->name) != 0 || p->rows != q->rows || p->cols != q->cols) return 0;
    }
    return 1;
}

static void tmoei_own_router_plan(tmoe_model *model)
{
    const tmoe_own_router *own = &model->ctx->router;
    model->own_router = *own;
    for (int i = 0; i < own->parameter_count; i++) {
        const tmoe_own_parameter *wanted = &own->parameters[i];
        tmoei_parameter p = tmoei_parameter_of(wanted->rows, wanted->cols, TMOEI_RATE_ROUTER);
        p.decay = wanted->rows > 1;
        p.init_std = wanted->init_std;
        (void)tmoei_parameter_add(model, &p, "router.own.%s", wanted->name);
    }
}

static void tmoei_router_plan(tmoe_model *model)
{
    const tmoe_config *c = &model->config;
    const tmoei_router_family family = tmoei_router_family_of(c);
    const int R = model->R, E = c->experts, k = c->vector_width, hidden = c->router_hidden;
    const int W = tmoei_router_width(c), F = TMOEI_ROUTER_FFN;
    const float std = TMOEI_ROUTER_STD, uniform = -1.0f / sqrtf((float)hidden);

    if (family == TMOEI_ROUTER_OF_USER) {
        tmoei_own_router_plan(model);
        return;
    }
    if (family == TMOEI_ROUTER_MLP) {
        const int specific = tmoei_router_specific(c), mlps = specific ? R : 1;
        for (int l = 0; l < mlps; l++) {
            char name[32];
            (void)snprintf(name, sizeof name, "%d.linear1", l);
            tmoei_router_add(model, name, hidden, k, std);
            (void)snprintf(name, sizeof name, "%d.linear2", l);
            tmoei_router_add(model, name, specific ? E : R * E, hidden, std);
        }
        return;
    }

    if (tmoei_router_specific(c)) {
        tmoei_router_add(model, "layer_projection", R * W, k, std);
    } else {
        tmoei_parameter positions = tmoei_parameter_of(1, R * W, TMOEI_RATE_ROUTER);
        positions.decay = 1;
        positions.init_std = std;
        (void)tmoei_parameter_add(model, &positions, "router.layer_positions.weight");
    }

    if (family == TMOEI_ROUTER_TRANSFORMER) {
        tmoei_router_add(model, "attention.qkv", 3 * W, W, std);
        tmoei_router_add(model, "attention.out", W, W, std);
        tmoei_router_add(model, "norm1", 0, W, 0.0f);
        tmoei_router_add(model, "linear1", F, W, std);
        tmoei_router_add(model, "linear2", W, F, std);
        tmoei_router_add(model, "norm2", 0, W, 0.0f);
        tmoei_router_add(model, "projection", E, W, std);
        return;
    }
    int gates = 1; /* rows of recurrent weights for each hidden unit */
    if (family == TMOEI_ROUTER_GRU) gates = 3;
    if (family == TMOEI_ROUTER_LSTM) gates = 4;
    tmoei_router_add(model, "forward.input", gates * hidden, W, uniform);
    tmoei_router_add(model, "forward.hidden", gates * hidden, hidden, uniform);
    tmoei_router_add(model, "backward.input", gates * hidden, W, uniform);
    tmoei_router_add(model, "backward.hidden", gates * hidden, hidden, uniform);
    tmoei_router_add(model, "projection", E, 2 * hidden, std);
}

/* What router and layers read of e: times vector_length / sqrt(k). */
static float tmoei_vector_scale(const tmoe_config *c)
{
    return c->vector_length > 0.0f ? c->vector_length / sqrtf((float)c->vector_width) : 1.0f;
}

/* Lays out theta: name, shape, offset and start of every tensor. */
static tmoe_result tmoei_model_plan(tmoe_model *model)
{
    const tmoe_config *c = &model->config;
    const int D = c->width, V = model->V, vector = c->task_input & TMOE_TASK_VECTOR;
    const int row = c->task_input & TMOE_TASK_ROW;
    const float length = tmoei_vector_scale(c) * sqrtf((float)c->vector_width);
    const int learned = c->positions == TMOE_POSITION_LEARNED;
    const int sources = learned ? c->source_tokens : 0, targets = learned ? c->target_tokens : 0;
    const int task_rows = vector ? D : row != 0, task_cols = vector ? c->vector_width : D;
    const tmoei_shape shared[TMOEI_SHARED] = { { "tokens.weight", V, D },
        { "encoder.positions.weight", sources, D }, { "decoder.positions.weight", targets, D },
        { "encoder.norm.weight", 1, D }, { "encoder.norm.bias", 1, D },
        { "decoder.norm.weight", 1, D }, { "decoder.norm.bias", 1, D },
        { "encoder.task.weight", task_rows, task_cols },
        { "decoder.task.weight", task_rows, task_cols }, { "output.bias", 1, V } };
    model->layers = (tmoei_layer *)tmoei_own(&model->own, (size_t)model->L, sizeof *model->layers);
    if (!model->layers) return model->ctx->error;

    for (int s = 0; s < TMOEI_SHARED; s++) {
        const int gain = s == TMOEI_ENCODER_NORM || s == TMOEI_DECODER_NORM;
        const int output = s == TMOEI_OUTPUT_BIAS;
        const int task = s == TMOEI_ENCODER_TASK || s == TMOEI_DECODER_TASK;
        tmoei_parameter p = tmoei_parameter_of(shared[s].rows, shared[s].cols,
            output ? TMOEI_RATE_NONE : TMOEI_RATE_SHARED);
        p.init_std = tmoei_init_std(model, p.rows, p.cols);
        if (task) p.init_std = tmoei_init_std(model, p.rows, D) / length; /* P e is as a token */
        p.init_value = gain ? 1.0f : 0.0f;
        if (output) /* lies behind the layers: an odd V would move them off cache lines */
            for (int l = 0; l < model->L; l++) tmoei_layer_plan(model, l);
        model->shared[s] = p.rows > 0 ? model->parameter_count : -1;
        if (p.rows > 0) (void)tmoei_parameter_add(model, &p, "%s", shared[s].name);
    }

    for (int l = 0; l < model->L; l++)
        if (model->layers[l].block_size > (size_t)INT_MAX)
            return tmoei_fail(model->ctx, TMOE_ERR_CONFIG,
                "config: an expert of layer %d has more than %d parameters", l, INT_MAX);

    model->router_parameter = model->parameter_count;
    if (model->R > 0) tmoei_router_plan(model);
    model->vectors = model->size;
    model->has_vectors = model->N > 0 && (model->R > 0 || vector);
    if (model->has_vectors) {
        const int trained = c->vectors == TMOE_VECTOR_LEARNED;
        tmoei_parameter p = tmoei_parameter_of(model->N, c->vector_width,
            trained ? TMOEI_RATE_TASKS : TMOEI_RATE_NONE);
        p.decay = 1;
        p.init_std = TMOEI_ROUTER_STD;
        (void)tmoei_parameter_add(model, &p, "task_vectors.weight");
    }
    return model->ctx->error;
}

typedef struct tmoei_init_job {
    tmoe_model *model;
    int derived; /* 1: leaves out dense parts and expert 0, which will be copied */
} tmoei_init_job;

static float tmoei_init_value(const tmoei_parameter *parameter, uint64_t seed, uint64_t stream,
    uint64_t i)
{
    const float std = parameter->init_std;
    if (std > 0.0f) return std * tmoei_normal(seed, stream, i);
    if (std < 0.0f) return -std * (2.0f * tmoei_uniform(tmoei_random(seed, stream, i)) - 1.0f);
    return parameter->init_value;
}

/* Every parameter's start: matrices normal (or uniform), norms 1, biases 0, and experts above 0 the
 * noise by which they differ from expert 0. The stream is the tensor's index, the counter the
 * element. */
static void tmoei_init_sweep(const tmoe_ctx *ctx, const void *job, size_t first, size_t count)
{
    const tmoei_init_job *s = (const tmoei_init_job *)job;
    const tmoe_config *c = &s->model->config;
    (void)ctx;
    for (size_t p = first; p < first + count; p++) {
        const tmoei_parameter *parameter = &s->model->parameters[p];
        float *x = s->model->theta + parameter->offset;
        const int noise = parameter->expert > 0;
        if (s->derived && !noise && (int)p < s->model->router_parameter) continue;
        for (size_t i = 0; i < parameter->size; i++)
            x[i] = tmoei_init_value(parameter, c->seed, (uint64_t)p, i);
        if (!noise) continue;
        const float scale = parameter->init_std == 0.0f ? 0.0f : c->expert_noise;
        for (size_t i = 0; i < parameter->size; i++) x[i] *= scale;
    }
}

/* A number of tmoe_config and the like: its name in files, where it is, what it may be. */
typedef enum tmoei_kind { TMOEI_KIND_INT, TMOEI_KIND_FLOAT, TMOEI_KIND_BOOL } tmoei_kind;

typedef struct tmoei_field {
    const char *name;
    size_t offset;
    tmoei_kind kind;
    double least, most;
    int kept;          /* 1: a model that begins with another's weights has the same */
    const char *words; /* of an enum: of its values from `least` on; of bits ('|' first): of each */
} tmoei_field;

#define TMOEI_FIELD(name, f, kind, least, most, kept, words) \
    { \
        name, offsetof(TMOEI_STRUCT, f), TMOEI_KIND_##kind, (double)(least), (double)(most), kept, \
            words \
    }
#define TMOEI_NAMED(name, f, kind, least, most) TMOEI_FIELD(name, f, kind, least, most, 0, NULL)
#define TMOEI_INT(f, least, most) TMOEI_NAMED(#f, f, INT, least, most)
#define TMOEI_ENUM(f, least, most, words) TMOEI_FIELD(#f, f, INT, least, most, 0, words)
#define TMOEI_KEPT(f, least, most) TMOEI_FIELD(#f, f, INT, least, most, 1, NULL)
#define TMOEI_KEPT_ENUM(f, least, most, words) TMOEI_FIELD(#f, f, INT, least, most, 1, words)
#define TMOEI_SIZE(f, least) TMOEI_KEPT(f, least, TMOEI_SIZE_MAX)
#define TMOEI_FLOAT(f, least, most) TMOEI_NAMED(#f, f, FLOAT, least, most)
#define TMOEI_BELOW_1 (1.0 - 1.0 / 16777216.0) /* the largest float there */
#define TMOEI_ABOVE_1 1.000001                 /* the least that a message shows as more than 1 */

#define TMOEI_STRUCT tmoe_config
static const tmoei_field tmoei_config_fields[] = { /* all but the seed, which has 64 bits */
    TMOEI_SIZE(width, 1), TMOEI_SIZE(encoder_heads, 1), TMOEI_SIZE(decoder_heads, 1),
    TMOEI_SIZE(encoder_ffn, 1), TMOEI_SIZE(decoder_ffn, 1), TMOEI_SIZE(encoder_layers, 1),
    TMOEI_SIZE(decoder_layers, 1), TMOEI_KEPT(source_tokens, 0, TMOEI_SCORES),
    TMOEI_KEPT(target_tokens, 0, TMOEI_SCORES), TMOEI_SIZE(vocabulary, 0),
    TMOEI_KEPT_ENUM(norm, TMOE_NORM_PRE, TMOE_NORM_POST, "pre post"),
    TMOEI_KEPT_ENUM(activation, TMOE_GELU, TMOE_RELU, "gelu relu"),
    TMOEI_KEPT(scale_embedding, 0, 1), TMOEI_INT(experts, 1, TMOEI_EXPERTS_MAX),
    TMOEI_ENUM(expert_places, 0, TMOE_ENCODER | TMOE_DECODER, "|encoder decoder"),
    TMOEI_ENUM(expert_kind, TMOE_EXPERT_LAYER, TMOE_EXPERT_FFN, "layer ffn"),
    TMOEI_FLOAT(expert_noise, 0, FLT_MAX),
    TMOEI_ENUM(mix, TMOE_MIX_PARAM, TMOE_MIX_OUTPUT, "param output"),
    TMOEI_ENUM(selection, TMOE_SELECT_SOFTMAX, TMOE_SELECT_RANDOM_EXAMPLE,
        "softmax gumbel straight_through average random_task random_example"),
    TMOEI_INT(random_n, 1, TMOEI_EXPERTS_MAX), TMOEI_FLOAT(temperature, FLT_MIN, FLT_MAX),
    TMOEI_FLOAT(temperature_decay, 0, FLT_MAX), TMOEI_FLOAT(temperature_min, FLT_MIN, FLT_MAX),
    TMOEI_FLOAT(exploration, 0, 1),
    TMOEI_ENUM(router, TMOE_ROUTER_LINEAR, TMOE_ROUTER_OWN,
        "linear linear_layer_specific rnn rnn_layer_specific gru gru_layer_specific "
        "lstm lstm_layer_specific transformer transformer_layer_specific own"),
    TMOEI_INT(router_hidden, 1, TMOEI_ROUTER_HIDDEN_MAX),
    TMOEI_ENUM(vectors, TMOE_VECTOR_TEXT, TMOE_VECTOR_GIVEN, "text learned given"),
    TMOEI_INT(vector_width, 1, TMOEI_SIZE_MAX),
    TMOEI_ENUM(task_input, 0, TMOE_TASK_TEXT | TMOE_TASK_VECTOR | TMOE_TASK_ROW,
        "|text vector row"),
    TMOEI_KEPT(begin_in_target, 0, 1), TMOEI_INT(specials_in_text, 0, 1),
    TMOEI_FLOAT(init_std, 0, FLT_MAX), TMOEI_SIZE(start_id, 0), TMOEI_SIZE(begin_id, 0),
    TMOEI_SIZE(pad_id, 0), TMOEI_SIZE(end_id, 0),
    TMOEI_KEPT_ENUM(positions, TMOE_POSITION_LEARNED, TMOE_POSITION_ROTARY, "learned rotary"),
    TMOEI_FIELD("rotary_base", rotary_base, FLOAT, TMOEI_ABOVE_1, FLT_MAX, 1, NULL),
    TMOEI_INT(word_pairs, 0, 1), TMOEI_FLOAT(vector_length, 0, FLT_MAX)
};

enum {
    TMOEI_CONFIG_FIELDS = sizeof tmoei_config_fields / sizeof *tmoei_config_fields,
    TMOEI_CONFIG_FIELDS_3 = TMOEI_CONFIG_FIELDS - 4 /* those of files of format 2 and 3 */
};

#undef TMOEI_STRUCT

#define TMOEI_STRUCT tmoe_generation
static const tmoei_field
    tmoei_generation_fields[] = { /* by transformers' names, but for the first */
        TMOEI_INT(early_stopping, 0, TMOE_EARLY_STOPPING_NEVER),
        TMOEI_NAMED("num_beams", beams, INT, 1, TMOEI_BEAMS_MAX),
        TMOEI_INT(max_length, 0, TMOEI_SIZE_MAX), TMOEI_INT(min_length, 0, TMOEI_SIZE_MAX),
        TMOEI_NAMED("no_repeat_ngram_size", no_repeat_ngram, INT, 0, TMOEI_SIZE_MAX),
        TMOEI_NAMED("num_return_sequences", returned, INT, 1, TMOEI_BEAMS_MAX),
        TMOEI_FLOAT(length_penalty, -FLT_MAX, FLT_MAX),
        TMOEI_NAMED("forced_bos_token_id", forced_begin_id, INT, -1, TMOEI_SIZE_MAX),
        TMOEI_NAMED("forced_eos_token_id", forced_end_id, INT, -1, TMOEI_SIZE_MAX)
    };

enum { TMOEI_GENERATION_FIELDS = sizeof tmoei_generation_fields / sizeof *tmoei_generation_fields };

#undef TMOEI_STRUCT

static double tmoei_field_value(const void *config, const tmoei_field *field)
{
    const void *at = (const char *)config + field->offset;
    return field->kind == TMOEI_KIND_FLOAT ? (double)*(const float *)at : (double)*(const int *)at;
}

/* Sets a field to x, where it can be; returns whether it can. */
static int tmoei_field_set(void *config, const tmoei_field *field, double x)
{
    void *at = (char *)config + field->offset;
    const int real = field->kind == TMOEI_KIND_FLOAT;
    if (real) x = (double)(float)x; /* nine digits of FLT_MAX are more than it */
    if (!(x >= field->least && x <= field->most) || (!real && x != floor(x))) return 0;
    if (real)
        *(float *)at = (float)x;
    else
        *(int *)at = (int)x;
    return 1;
}

/* Notes every field that is outside its range (NaN is), so that one message names all of them. */
static void tmoei_fields_check(const void *config, const tmoei_field *fields, size_t count,
    char *text, size_t size)
{
    for (const tmoei_field *f = fields; f < fields + count; f++) {
        const double x = tmoei_field_value(config, f);
        if (!(x >= f->least && x <= f->most))
            tmoei_problem(text, size, "%s is %.7g, must be %.7g to %.7g", f->name, x, f->least,
                f->most);
    }
}

static tmoe_result tmoei_config_check(tmoe_ctx *ctx, const tmoe_config *c,
    const tmoe_tokenizer *tokenizer, int tasks)
{
    const int symbols = tokenizer ? tmoe_tokenizer_vocabulary(tokenizer) : 3;
    const int V = c->vocabulary ? c->vocabulary : symbols, W = tmoei_router_width(c);
    char text[TMOEI_PROBLEM_BYTES] = "";
    const size_t size = sizeof text;
    tmoei_fields_check(c, tmoei_config_fields, TMOEI_CONFIG_FIELDS, text, size);
    if (c->source_tokens < 3 || c->target_tokens < 2)
        tmoei_problem(text, size,
            "source_tokens is %d, target_tokens is %d; they must be at least 3 and 2 (0 is for "
            "tmoe_train)",
            c->source_tokens, c->target_tokens);
    if (c->encoder_heads > 0 && c->decoder_heads > 0
        && (c->width % c->encoder_heads != 0 || c->width % c->decoder_heads != 0))
        tmoei_problem(text, size,
            "width = %d is not divisible by encoder_heads = %d and decoder_heads = %d", c->width,
            c->encoder_heads, c->decoder_heads);
    else if (c->positions == TMOE_POSITION_ROTARY && c->encoder_heads > 0 && c->decoder_heads > 0
        && (c->width / c->encoder_heads % 2 != 0 || c->width / c->decoder_heads % 2 != 0))
        tmoei_problem(text, size,
            "heads of width %d and %d, must be even with TMOE_POSITION_ROTARY",
            c->width / c->encoder_heads, c->width / c->decoder_heads);
    if (c->start_id >= V || c->begin_id >= V || c->pad_id >= V || c->end_id >= V)
        tmoei_problem(text, size, "a token id is not below vocabulary = %d", V);
    /* BARTs may lack rows for their last tokens; a text that needs one is refused then */
    const int lacks_rows = c->vocabulary ? V < symbols && !c->specials_in_text : !tokenizer;
    if (lacks_rows)
        tmoei_problem(text, size, "vocabulary is %d, must be at least the tokenizer's %d",
            c->vocabulary, symbols);
    if (tasks < 0 || (c->experts > 1 && (tasks < 1 || c->expert_places == 0)))
        tmoei_problem(text, size, "experts is %d, for %d tasks and expert_places = %d", c->experts,
            tasks, c->expert_places);
    if ((c->task_input & TMOE_TASK_VECTOR) && tasks < 1)
        tmoei_problem(text, size,
            "task_input has TMOE_TASK_VECTOR, which needs a task; there are %d", tasks);
    if ((c->task_input & TMOE_TASK_ROW)
        && ((c->task_input & TMOE_TASK_VECTOR) || c->positions == TMOE_POSITION_LEARNED))
        tmoei_problem(text, size,
            "task_input has TMOE_TASK_ROW, which is for TMOE_POSITION_ROTARY in the place of "
            "TMOE_TASK_VECTOR");
    if (c->selection == TMOE_SELECT_RANDOM_TASK && c->random_n > c->experts)
        tmoei_problem(text, size, "random_n is %d, must be 1 to experts = %d", c->random_n,
            c->experts);
    if (c->router == TMOE_ROUTER_OWN && c->experts > 1)
        tmoei_own_router_check(&ctx->router, text, size);
    if (tmoei_router_family_of(c) == TMOEI_ROUTER_TRANSFORMER && W % TMOEI_ROUTER_HEADS != 0)
        tmoei_problem(text, size, "%s is %d, must be divisible by the router's %d heads",
            tmoei_router_specific(c) ? "router_hidden" : "vector_width", W, TMOEI_ROUTER_HEADS);
    return text[0] ? tmoei_fail(ctx, TMOE_ERR_CONFIG, "config: %s", text) : TMOE_OK;
}

TMOE_DEF tmoe_config tmoe_config_default(void)
{
    tmoe_config c;
    memset(&c, 0, sizeof c);
    c.width = 96;
    c.encoder_heads = c.decoder_heads = 4;
    c.encoder_ffn = c.decoder_ffn = 384;
    c.encoder_layers = c.decoder_layers = 2;
    c.norm = TMOE_NORM_PRE;
    c.positions = TMOE_POSITION_ROTARY;
    c.rotary_base = 100.0f;
    c.activation = TMOE_GELU;
    c.source_tokens = 128;
    c.target_tokens = 64; /* the paper decodes at most 64 tokens */
    c.experts = 4;
    c.expert_places = TMOE_ENCODER | TMOE_DECODER;
    c.expert_noise = 0.5f;
    c.mix = TMOE_MIX_PARAM;
    c.selection = TMOE_SELECT_SOFTMAX;
    c.random_n = 1;
    c.temperature = c.temperature_min = 1.0f;
    c.router = TMOE_ROUTER_LINEAR_LAYER_SPECIFIC;
    c.router_hidden = 64; /* the paper's final runs */
    c.vectors = TMOE_VECTOR_TEXT;
    c.vector_width = 512;
    c.vector_length = 2.0f; /* layers learned nothing from vectors of length 16 */
    c.word_pairs = 1;
    c.task_input = TMOE_TASK_VECTOR;
    c.seed = 1;
    c.begin_id = TMOE_TOKEN_BEGIN;
    c.pad_id = TMOE_TOKEN_PAD;
    c.start_id = c.end_id = TMOE_TOKEN_END;
    return c;
}

/* ---- making a model ---- */

TMOE_DEF void tmoe_model_destroy(tmoe_model *model)
{
    if (!model) return;
    tmoe_tokenizer_destroy(model->tokenizer);
    tmoe_tape_destroy(model->tape);
#ifndef TMOE_NO_STDIO
    if (model->mapping) tmoei_unmap(model->mapping, model->mapping_size);
#endif
    tmoei_free(model->ctx, model->parameters);
    tmoei_owner_free(&model->own);
    tmoei_free(model->ctx, model);
}

/* Returns the model where `good`; otherwise destroys it and returns NULL. */
static tmoe_model *tmoei_model_if(int good, tmoe_model *model)
{
    if (good) return model;
    tmoe_model_destroy(model);
    return NULL;
}

/* Copies the names of the tasks and makes their text vectors. */
static tmoe_result tmoei_model_copy_tasks(tmoe_model *model, const tmoe_task *tasks)
{
    tmoei_owner *own = &model->own;
    const size_t N = (size_t)model->N, k = (size_t)model->config.vector_width;
    model->tasks = (tmoe_task *)tmoei_own(own, N + 1, sizeof *model->tasks);
    model->text_vectors = (float *)tmoei_own(own, N + 1, k * sizeof(float));
    if (!model->tasks || !model->text_vectors) return TMOE_ERR_MEMORY;
    model->asked_vector = model->text_vectors + N * k;

    for (size_t t = 0; t < N; t++) {
        const tmoe_task *from = &tasks[t];
        tmoe_task *to = &model->tasks[t];
        if (!from->name || !from->instruction)
            return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
                "model_create: task %lu has no name or no instruction", (unsigned long)t);
        const char *category = from->category ? from->category : "none";
        to->name = tmoei_own_text(own, from->name, strlen(from->name));
        to->instruction = tmoei_own_text(own, from->instruction, strlen(from->instruction));
        to->category = tmoei_own_text(own, category, strlen(category));
        tmoei_text_vector(&model->config, from->instruction, model->text_vectors + t * k);
    }
    return model->ctx->error;
}

/* ROTARY's cosines and sines for the heads and the positions of each side. */
static void tmoei_model_rotary(tmoe_model *model)
{
    const tmoe_config *c = &model->config;
    for (int decoder = 0; decoder < 2 && c->positions == TMOE_POSITION_ROTARY; decoder++) {
        const int positions = decoder ? c->target_tokens : c->source_tokens;
        const int W = c->width / (decoder ? c->decoder_heads : c->encoder_heads);
        float *table =
            (float *)tmoei_own(&model->own, (size_t)positions, (size_t)W * sizeof(float));
        if (table) tmoei_rotary_fill(table, positions, W, c->rotary_base);
        model->rotary[decoder] = table;
    }
}

/* A model without its parameters: theta is allocated by tmoei_theta_alloc, or lies in a file. */
static tmoe_model *tmoei_model_new(tmoe_ctx *ctx, const tmoe_config *config,
    const tmoe_tokenizer *tokenizer, const tmoe_task *tasks, int task_count)
{
    if (tmoei_config_check(ctx, config, tokenizer, task_count) != TMOE_OK) return NULL;
    tmoe_model *model = (tmoe_model *)tmoei_alloc(ctx, 1, sizeof *model, 1);
    if (!model) return NULL;
    tmoei_owner *own = &model->own;
    model->ctx = own->ctx = ctx;
    model->config = *config;
    model->N = task_count;
    model->version = 1;
    model->L = config->encoder_layers + config->decoder_layers;
    model->V = config->vocabulary ? config->vocabulary : tmoe_tokenizer_vocabulary(tokenizer);
    model->config.vocabulary = model->V;
    model->generation.beams = model->generation.returned = 1;
    model->generation.length_penalty = 1.0f;
    model->generation.forced_begin_id = model->generation.forced_end_id = -1;
    model->tape = tmoei_tape_new(ctx);
    model->tokenizer = tokenizer ? tokenizer->copy(ctx, tokenizer) : NULL;

    if (ctx->error == TMOE_OK && tmoei_model_copy_tasks(model, tasks) == TMOE_OK
        && tmoei_model_plan(model) == TMOE_OK) {
        const size_t N = (size_t)task_count, width = (size_t)model->R * (size_t)config->experts;
        model->route_width = width;
        model->routes = (float *)tmoei_own(own, N * width + 1, sizeof(float));
        model->mask = (float *)tmoei_own(own, width + 1, sizeof(float));
        model->merged_route = (float *)tmoei_own(own, width + 1, sizeof(float));
        model->blocks = (float **)tmoei_own(own, (size_t)model->L, sizeof *model->blocks);
        tmoei_model_rotary(model);
    }
    return tmoei_model_if(ctx->error == TMOE_OK, model);
}

static tmoe_result tmoei_theta_alloc(tmoe_model *model)
{
    model->theta = (float *)tmoei_own(&model->own, model->size, sizeof(float));
    return model->ctx->error;
}

/* A model with theta as tmoei_init_sweep begins it; experts above 0 are only their noise yet. */
static tmoe_model *tmoei_model_begin(tmoe_ctx *ctx, const tmoe_config *config,
    const tmoe_tokenizer *tokenizer, const tmoe_task *tasks, int task_count, int derived)
{
    tmoe_model *model = tmoei_model_new(ctx, config, tokenizer, tasks, task_count);
    const tmoei_init_job job = { model, derived };
    if (!model || tmoei_theta_alloc(model) != TMOE_OK) {
        tmoe_model_destroy(model);
        return NULL;
    }
    tmoei_sweep(ctx, (size_t)model->parameter_count, 1, tmoei_init_sweep, &job);
    if (model->has_vectors && config->vectors == TMOE_VECTOR_TEXT)
        memcpy(model->theta + model->vectors, model->text_vectors,
            (size_t)model->N * (size_t)config->vector_width * sizeof(float));
    return model;
}

/* theta_e = noise_e + theta_0 for the experts e > 0 of layer l, whose blocks hold the noise. */
static void tmoei_experts_copy(tmoe_model *model, int l)
{
    const size_t n = model->layers[l].block_size;
    float *block = model->theta + model->layers[l].block;
    for (int e = 1; e < model->layers[l].experts; e++)
        tmoei_scale_add(model->ctx, block + (size_t)e * n, 1.0f, 1.0f, block, n);
}

TMOE_DEF tmoe_model *tmoe_model_create(tmoe_ctx *ctx, const tmoe_config *config,
    const tmoe_tokenizer *tokenizer, const tmoe_task *tasks, int task_count)
{
    const tmoe_config chosen = config ? *config : tmoe_config_default();
    tmoei_begin(ctx);
    tmoe_model *model = tmoei_model_begin(ctx, &chosen, tokenizer, tasks, task_count, 0);
    if (!model) return NULL;
    for (int l = 0; l < model->L; l++) tmoei_experts_copy(model, l);
    return model;
}

/* ---- a model from another ---- */

/* out = sum_t w_t x_t,   w = softmax(20 cos(e, e_t)) over the known tasks, by text vectors; x_t the
 * rows (N, width) of `x`, a route or a vector of each task. */
#define TMOEI_NEAREST_SHARPNESS 20.0

static void tmoei_nearest_mean(const tmoe_model *model, const float *text_vector, const float *x,
    size_t width, float *out)
{
    const int k = model->config.vector_width;
    double total = 0.0;
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    for (size_t i = 0; i < width; i++) out[i] = 0.0f;
    for (int t = 0; t < model->N; t++) {
        const float *seen = x + (size_t)t * width;
        const float *known = model->text_vectors + (size_t)t * (size_t)k;
        const double cosine = (double)tmoei_cosine(text_vector, known, k);
        const double weight = exp(TMOEI_NEAREST_SHARPNESS * cosine - TMOEI_NEAREST_SHARPNESS);
        for (size_t i = 0; i < width; i++) out[i] += (float)weight * seen[i];
        total += weight;
    }
    for (size_t i = 0; i < width; i++) out[i] = (float)((double)out[i] / total);
    tmoei_float_mode_leave(mode);
}

/* The vector of a task that is known by its text vector only: this, or with LEARNED and GIVEN
 * vectors the mean of the nearest known ones. */
static void tmoei_vector_unseen(const tmoe_model *model, const float *text_vector, float *vector)
{
    const size_t k = (size_t)model->config.vector_width;
    if (model->config.vectors == TMOE_VECTOR_TEXT || !model->has_vectors)
        memcpy(vector, text_vector, k * sizeof(float));
    else
        tmoei_nearest_mean(model, text_vector, model->theta + model->vectors, k, vector);
}

TMOE_DEF int tmoe_model_find_task(const tmoe_model *model, const char *name)
{
    for (int t = 0; name && t < model->N; t++)
        if (strcmp(model->tasks[t].name, name) == 0) return t;
    return -1;
}

TMOE_DEF int tmoe_model_parameter(const tmoe_model *model, int i, tmoe_parameter *parameter)
{
    memset(parameter, 0, sizeof *parameter);
    if (i < 0 || i >= model->parameter_count) return 0;
    const tmoei_parameter *p = &model->parameters[i];
    parameter->name = p->name;
    parameter->values = model->theta + p->offset;
    parameter->rows = p->rows;
    parameter->cols = p->cols;
    return 1;
}

TMOE_DEF tmoe_result tmoe_model_parameter_set(tmoe_model *model, const char *name,
    const float *values)
{
    const tmoei_parameter *found = NULL;
    tmoei_begin(model->ctx);
    for (int i = 0; name && i < model->parameter_count; i++)
        if (strcmp(model->parameters[i].name, name) == 0) found = &model->parameters[i];
    if (!found || !values)
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "model_parameter_set: the model has no parameter '%.100s', or the values are NULL",
            name ? name : "(NULL)");
    for (size_t i = 0; i < found->size; i++)
        if (!(fabsf(values[i]) <= FLT_MAX))
            return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
                "model_parameter_set: value %lu of '%s' is %g; it must be finite", (unsigned long)i,
                name, (double)values[i]);
    memcpy(model->theta + found->offset, values, found->size * sizeof(float));
    model->version++;
    return TMOE_OK;
}

TMOE_DEF int tmoe_model_take_router(tmoe_model *model, const tmoe_model *from)
{
    const tmoe_config *c = &model->config, *a = &from->config;
    const size_t k = (size_t)c->vector_width;
    float *vectors = model->theta + model->vectors;
    const float *theirs = from->theta + from->vectors;
    if (!model->has_vectors || !from->has_vectors || c->vector_width != a->vector_width) return 0;

    const int agree = model->R > 0 && model->R == from->R && c->router == a->router
        && c->router_hidden == a->router_hidden && c->vector_length == a->vector_length
        && c->expert_places == a->expert_places && c->experts == a->experts
        && tmoei_own_routers_agree(&model->own_router, &from->own_router);
    if (agree) {
        const size_t n = model->vectors - model->parameters[model->router_parameter].offset;
        memcpy(vectors - n, theirs - n, n * sizeof(float)); /* the router lies before the vectors */
    }
    /* TMOE_VECTOR_TEXT keeps its own: zero-shot routing makes the same of an instruction */
    for (int t = 0; t < model->N && c->vectors != TMOE_VECTOR_TEXT; t++) {
        const int known = tmoe_model_find_task(from, model->tasks[t].name);
        if (known >= 0)
            memcpy(vectors + (size_t)t * k, theirs + (size_t)known * k, k * sizeof(float));
    }
    model->version++;
    return agree;
}

/* Where a piece of layer l lies in theta: in the block of `expert`, or in the shared part. */
static float *tmoei_piece_of(const tmoe_model *model, int l, int piece, int expert)
{
    const tmoei_layer *layer = &model->layers[l];
    const size_t part =
        layer->in_expert[piece] ? layer->block + (size_t)expert * layer->block_size : layer->shared;
    return model->theta + part + layer->offset[piece];
}

/* Layer l of a new model from another's, as tmoe_model_derive says: its experts are kept, or begin
 * as theta = sum_e r_e theta_e, r_e = 1 / E without a route. */
static void tmoei_layer_derive(tmoe_model *model, const tmoe_model *from, int l, const float *route)
{
    const tmoei_layer *layer = &model->layers[l], *old = &from->layers[l];
    const int keep = !route && layer->experts == old->experts;
    for (int piece = 0; piece < TMOEI_PIECES; piece++) {
        const size_t n = (size_t)layer->rows[piece] * (size_t)layer->cols[piece];
        const int sum = !keep && old->in_expert[piece];
        const int several = sum || (keep && layer->in_expert[piece]);
        const int experts = several ? old->experts : 1;
        for (int e = 0; e < experts; e++) {
            float weight = 1.0f;
            if (sum) weight = route ? route[e] : 1.0f / (float)experts;
            tmoei_scale_add(model->ctx, tmoei_piece_of(model, l, piece, sum ? 0 : e),
                sum && e > 0 ? 1.0f : 0.0f, weight, tmoei_piece_of(from, l, piece, e), n);
        }
    }
    if (!keep) tmoei_experts_copy(model, l);
}

/* Refuses a config `to` in which the weights of `from` would compute something else; the message
 * names the fields. What only says how a text becomes tokens is free. */
static tmoe_result tmoei_derivable(tmoe_ctx *ctx, const tmoe_model *from, const float *route,
    const tmoe_config *to)
{
    const tmoe_config *a = &from->config;
    char text[TMOEI_PROBLEM_BYTES] = "";
    for (size_t i = 0; i < TMOEI_CONFIG_FIELDS; i++) {
        const tmoei_field *f = &tmoei_config_fields[i];
        const double x = tmoei_field_value(to, f), kept = tmoei_field_value(a, f);
        if (f->kept && x != kept)
            tmoei_problem(text, sizeof text, "%s is %.7g, must stay %.7g", f->name, x, kept);
    }
    if (!route && from->R > 0 && to->experts == a->experts && (to->expert_places & a->expert_places)
        && a->expert_kind == TMOE_EXPERT_LAYER && to->expert_kind == TMOE_EXPERT_FFN)
        tmoei_problem(text, sizeof text, "expert_kind must stay: the experts' attention differs");
    if (!(a->task_input & TMOE_TASK_ROW) != !(to->task_input & TMOE_TASK_ROW))
        tmoei_problem(text, sizeof text, "TMOE_TASK_ROW of task_input must stay as it is");
    const int vector = a->task_input & to->task_input & TMOE_TASK_VECTOR;
    if (vector && a->vector_width != to->vector_width)
        tmoei_problem(text, sizeof text, "vector_width is %d, must stay %d", to->vector_width,
            a->vector_width);
    if (vector && to->vectors == TMOE_VECTOR_TEXT
        && (a->vectors != to->vectors || a->word_pairs != to->word_pairs))
        tmoei_problem(text, sizeof text,
            "vectors of text, and word_pairs = %d, must be those that the layers were trained on",
            to->word_pairs);
    if (vector && a->vector_length != to->vector_length)
        tmoei_problem(text, sizeof text, "vector_length is %g, must stay %g",
            (double)to->vector_length, (double)a->vector_length);
    return text[0] ? tmoei_fail(ctx, TMOE_ERR_CONFIG, "model_derive: %s", text) : TMOE_OK;
}

/* P e, with e as it is read */
static tmoe_tensor *tmoei_task_product(tmoe_tape *tape, const tmoe_config *c, tmoe_tensor *e,
    tmoe_tensor *p)
{
    e = tmoe_affine(tape, e, tmoei_vector_scale(c), 0.0f);
    return tmoe_linear(tape, e, p, NULL, TMOE_NONE, NULL);
}

/* Returns whether a model with config `to` has the vector of its one task as a constant, where in
 * `from` it was an input. */
static int tmoei_is_fixed(const tmoe_model *from, const tmoe_config *to)
{
    const int before = from->config.task_input, after = to->task_input;
    return (before & TMOE_TASK_VECTOR) && !(after & TMOE_TASK_VECTOR);
}

/* Adds P e, e the vector that `from` has for the model's only task, to the learned positions, or
 * makes it the row. It is computed as tmoei_task_row does in `from`, so the sums are the same. */
static void tmoei_task_fix(tmoe_model *model, const tmoe_model *from)
{
    const int k = from->config.vector_width, D = model->config.width;
    const int learned = model->config.positions == TMOE_POSITION_LEARNED;
    const int known = tmoe_model_find_task(from, model->tasks[0].name);
    float *vector = (float *)tmoei_alloc(model->ctx, 2 * (size_t)k, sizeof(float), 0);
    if (!vector) return;
    tmoei_text_vector(&from->config, model->tasks[0].instruction, vector + k);
    tmoei_vector_unseen(from, vector + k, vector);
    if (known >= 0)
        memcpy(vector, from->theta + from->vectors + (size_t)known * (size_t)k,
            (size_t)k * sizeof(float));

    for (int decoder = 0; decoder < 2; decoder++) {
        const int p = from->shared[decoder ? TMOEI_DECODER_TASK : TMOEI_ENCODER_TASK];
        int to = decoder ? TMOEI_DECODER_TASK : TMOEI_ENCODER_TASK;
        if (learned) to = decoder ? TMOEI_DECODER_POSITIONS : TMOEI_ENCODER_POSITIONS;
        const tmoei_parameter *added = &model->parameters[model->shared[to]];
        tmoe_tape_record(model->tape, 0);
        tmoe_tensor *e = tmoe_leaf(model->tape, 1, k, vector, NULL);
        tmoe_tensor *w =
            tmoe_leaf(model->tape, D, k, from->theta + from->parameters[p].offset, NULL);
        const tmoe_tensor *row = tmoei_task_product(model->tape, &from->config, e, w);
        for (int i = 0; row && i < added->rows; i++)
            tmoei_scale_add(model->ctx, model->theta + added->offset + (size_t)i * (size_t)D, 1.0f,
                1.0f, row->x, (size_t)D);
    }
    tmoei_free(model->ctx, vector);
}

TMOE_DEF tmoe_model *tmoe_model_derive(tmoe_ctx *ctx, const tmoe_model *from, const float *route,
    const tmoe_config *config, const tmoe_task *tasks, int task_count)
{
    const int experts = from->config.experts;
    tmoe_config c = config ? *config : from->config;
    tmoei_begin(ctx);
    if (c.vocabulary == 0) c.vocabulary = from->V;
    if (tmoei_derivable(ctx, from, route, &c) != TMOE_OK) return NULL;
    if (!ctx->router.logits) ctx->router = from->own_router;
    const int fixed = tmoei_is_fixed(from, &c);
    if (fixed && task_count != 1) {
        (void)tmoei_fail(ctx, TMOE_ERR_CONFIG,
            "model_derive: without TMOE_TASK_VECTOR a task's vector becomes a constant, so there "
            "must be one task, not %d",
            task_count);
        return NULL;
    }
    if (fixed && c.positions == TMOE_POSITION_ROTARY) c.task_input |= TMOE_TASK_ROW;
    tmoe_model *model = tmoei_model_begin(ctx, &c, from->tokenizer, tasks, task_count, 1);
    if (!model) return NULL;

    for (int s = 0; s < TMOEI_SHARED; s++) { /* what `from` does not have begins as 0 */
        const int index = model->shared[s], old = from->shared[s];
        const int task = s == TMOEI_ENCODER_TASK || s == TMOEI_DECODER_TASK;
        if (index < 0 || old < 0 || (task && fixed)) continue;
        const tmoei_parameter *to = &model->parameters[index], *a = &from->parameters[old];
        memcpy(model->theta + to->offset, from->theta + a->offset, to->size * sizeof(float));
    }
    if (fixed) tmoei_task_fix(model, from);
    for (int l = 0; l < model->L; l++) {
        const int routed = from->layers[l].route;
        tmoei_layer_derive(model, from, l, route && routed >= 0 ? route + routed * experts : NULL);
    }
    (void)tmoe_model_take_router(model, from);
    model->step = config ? 0 : from->step;
    model->generation = from->generation;
    return tmoei_model_if(ctx->error == TMOE_OK, model);
}

TMOE_DEF const tmoe_config *tmoe_model_config(const tmoe_model *model)
{
    return &model->config;
}

TMOE_DEF tmoe_generation *tmoe_model_generation(tmoe_model *model)
{
    return &model->generation;
}

TMOE_DEF const tmoe_tokenizer *tmoe_model_tokenizer(const tmoe_model *model)
{
    return model->tokenizer;
}

TMOE_DEF int tmoe_model_task_count(const tmoe_model *model)
{
    return model->N;
}

TMOE_DEF const tmoe_task *tmoe_model_task(const tmoe_model *model, int task)
{
    return task >= 0 && task < model->N ? &model->tasks[task] : NULL;
}

TMOE_DEF size_t tmoe_model_parameters(const tmoe_model *model, size_t *active)
{
    size_t used = 0;
    for (int p = 0; p < model->router_parameter; p++)
        if (model->parameters[p].expert <= 0) used += model->parameters[p].size;
    if (active) *active = used;
    return model->size;
}

TMOE_DEF int tmoe_routed_layers(const tmoe_model *model)
{
    return model->R;
}

TMOE_DEF void tmoe_routed_layer_name(const tmoe_model *model, int routed_layer, char *text,
    size_t size)
{
    if (size > 0) text[0] = 0;
    for (int l = 0; l < model->L; l++) {
        const tmoei_layer *layer = &model->layers[l];
        if (routed_layer >= 0 && layer->route == routed_layer)
            (void)snprintf(text, size, "%s %d", layer->decoder ? "decoder" : "encoder",
                layer->number);
    }
}

/* ==== >>mix: routes, and the two ways to mix experts by them =====================================
 * A route is a distribution over the E experts of a layer: r_e >= 0, sum_e r_e = 1.
 *   OUTPUT mix (the paper)     h' = sum_e r_e layer_e(h)
 *   PARAM mix (soft merging)   theta_bar = sum_e r_e theta_e once per task; then one ordinary layer
 *                              runs on theta_bar
 * With a one-hot route both are the chosen expert itself.
 *
 * The gradient of a route, in full dloss/dr_e:
 *   OUTPUT   h' is linear in r_e, so dr_e = <dh', layer_e(h)>. This needs every expert's output:
 *            with straight-through routes the unselected experts, r_e = 0, run forward, too. They
 *            run no backward pass: all that they would add, to dtheta_e and dh, has the factor r_e.
 *   PARAM    theta_bar is linear in r_e, so dr_e = <g, theta_e>, g = dtheta_bar.
 *            The softmax s that made r has dz_j = s_j (dr_j - sum_e s_e dr_e) / tau and
 *            sum_e s_e = 1: a number that is subtracted from all dr_e cancels there.
 *            Subtracting <g, theta_bar> leaves dr_e = <g, theta_e - theta_bar>. Experts that start
 *            from one model differ by little: left in, what they share would drown the differences
 *            in rounding errors. OUTPUT leaves it in: there the sum has T D terms, not as many as a
 *            layer has parameters. */

/* ---- select ----
 *   forward   s = softmax((z + noise) / tau);  r = s, or one-hot(argmax s) when hard
 *   backward  dz_j (+)= s_j (dr_j - sum_e s_e dr_e) / tau   (straight-through: as if r were s)
 *   keeps     s */
typedef struct tmoei_select_kept {
    float *soft, tau;
} tmoei_select_kept;

static void tmoei_select_backward(tmoe_tape *tape, tmoei_node *node)
{
    const tmoei_select_kept *kept = (const tmoei_select_kept *)node->kept;
    const size_t rows = (size_t)node->y->rows, E = (size_t)node->y->cols;
    float *dz = tmoei_grad_to_add(node, 0);
    (void)tape;

    for (size_t t = 0; t < rows; t++) {
        const float *s = kept->soft + t * E, *dr = node->y->dx + t * E;
        float dot = 0.0f;
        for (size_t e = 0; e < E; e++) dot += dr[e] * s[e];
        for (size_t e = 0; e < E; e++) dz[t * E + e] += s[e] * (dr[e] - dot) / kept->tau;
    }
}

/* s = softmax((z + noise) / tau) for one row; returns the index of the largest. */
static size_t tmoei_soft_row(float *s, const float *z, const float *noise, float tau, size_t E)
{
    size_t best = 0;
    for (size_t e = 0; e < E; e++) {
        s[e] = (z[e] + (noise ? noise[e] : 0.0f)) / tau;
        if (s[e] > s[best]) best = e;
    }

    const float most = s[best]; /* cancels, and keeps exp finite */
    float sum = 0.0f;
    for (size_t e = 0; e < E; e++) {
        s[e] = expf(s[e] - most);
        sum += s[e];
    }
    for (size_t e = 0; e < E; e++) s[e] /= sum;
    return best;
}

TMOE_DEF tmoe_tensor *tmoe_select(tmoe_tape *tape, tmoe_tensor *z, const float *noise, float tau,
    int hard)
{
    if (!z || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_ARGUMENT_RULE(tape, tau > 0.0f, "select: temperature %g; must be above 0", (double)tau);
    tmoe_tensor *r = tmoei_tensor_new(tape, z->rows, z->cols, NULL);
    if (!r) return NULL;
    const tmoei_select_kept kept = { hard ? tmoei_floats(tape, tmoei_elements(z)) : r->x, tau };
    if (!kept.soft) return NULL;

    if (!tape->dry) {
        const size_t rows = (size_t)z->rows, E = (size_t)z->cols;
        const tmoei_float_mode mode = tmoei_float_mode_enter();
        for (size_t t = 0; t < rows; t++) {
            const size_t at = t * E;
            const size_t best =
                tmoei_soft_row(kept.soft + at, z->x + at, noise ? noise + at : NULL, tau, E);
            if (!hard) continue;
            memset(r->x + at, 0, E * sizeof(float));
            r->x[at + best] = 1.0f;
        }
        tmoei_float_mode_leave(mode);
    }
    return tmoei_record(tape, r, tmoei_select_backward, TMOEI_HAND_NONE, &kept, sizeof kept, &z, 1);
}

/* The expert that a one-hot route names, or -1 for a mixture. */
static int tmoei_one_hot(const float *route, int E)
{
    int chosen = -1;
    for (int e = 0; e < E; e++) {
        if (route[e] == 0.0f) continue;
        if (chosen >= 0 || route[e] != 1.0f) return -1;
        chosen = e;
    }
    return chosen;
}

/* ---- mix of outputs ----
 *   forward   y = sum_e r_e y_e
 *   backward  dy_e (+)= r_e dy;  dr_e += <dy, y_e> for every expert that ran */
static void tmoei_mix_outputs_backward(tmoe_tape *tape, tmoei_node *node)
{
    const int first = *(const int *)node->kept, E = node->count - 1;
    const tmoe_tensor *y = node->y;
    const float *r = node->in[E]->x + first;
    float *droute = tmoei_grad_to_add(node, E);

    for (int e = 0; e < E; e++) {
        const tmoe_tensor *part = node->in[e];
        if (!part) continue;
        if (droute)
            droute[first + e] +=
                (float)tmoei_dot(tape->ctx, y->dx, part->x, tmoei_elements(y), TMOEI_SWEEP);
        tmoei_accumulate(tape, node, e, r[e], y->dx);
    }
}

TMOE_DEF tmoe_tensor *tmoe_mix_outputs(tmoe_tape *tape, tmoe_tensor *const *outputs,
    int expert_count, tmoe_tensor *route, int first)
{
    const int E = expert_count;
    if (!route || !outputs || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_SHAPE_RULE(tape, E >= 1 && first >= 0 && route->rows == 1 && first <= route->cols - E,
        "mix_outputs: %d experts from column %d of a route (%d,%d)", E, first, route->rows,
        route->cols);

    const tmoe_tensor *ran = NULL; /* the first that did: all must have its shape */
    for (int e = 0; e < E; e++) {
        const tmoe_tensor *part = outputs[e];
        const float r = tape->dry ? 0.0f : route->x[first + e];
        TMOEI_SHAPE_RULE(tape, part || r == 0.0f,
            "mix_outputs: expert %d has weight %g but no output", e, (double)r);
        if (!part) continue;
        if (!ran) ran = part;
        TMOEI_SHAPE_RULE(tape, part->rows == ran->rows && part->cols == ran->cols,
            "mix_outputs: expert %d gave (%d,%d), another (%d,%d); must be equal", e, part->rows,
            part->cols, ran->rows, ran->cols);
    }
    TMOEI_SHAPE_RULE(tape, ran != NULL, "mix_outputs: none of %d experts ran", E);

    tmoe_tensor *y = tmoei_tensor_new(tape, ran->rows, ran->cols, NULL);
    tmoe_tensor **in = (tmoe_tensor **)tmoei_arena_alloc(&tape->nodes, (size_t)E + 1, sizeof *in);
    if (!y || !in) return NULL;
    memcpy(in, outputs, (size_t)E * sizeof *in);
    in[E] = route;

    if (!tape->dry) {
        memset(y->x, 0, tmoei_elements(y) * sizeof(float));
        for (int e = 0; e < E; e++) {
            const float r = route->x[first + e];
            if (r != 0.0f)
                tmoei_scale_add(tape->ctx, y->x, 1.0f, r, outputs[e]->x, tmoei_elements(y));
        }
    }
    return tmoei_record(tape, y, tmoei_mix_outputs_backward, TMOEI_HAND_NONE, &first, sizeof first,
        in, E + 1);
}

/* ---- mix of parameters: merging ----
 * For T tasks and blocks of n parameters:
 *   forward   theta_bar_t = sum_e r_te theta_e
 *   backward  dtheta_e += sum_t r_te g_t,  g_t = dl/dtheta_bar_t;
 *             dr_te += a_te - sum_e' r_te' a_te',  a_te = <g_t, theta_e - theta_0>,
 *             which is <g_t, theta_e - theta_bar_t> where row t of the route sums to 1. What the
 *             experts share is gone in theta_e - theta_0 already, and theta_0 is in the cache.
 * Every expert is read from memory once, however many tasks there are: meanwhile a piece of all
 * tasks' blocks stays in the cache. */
#define TMOEI_MERGE_PIECE TMOEI_MERGE_UNSEEN /* parameters at a time: lines that merge prefetches */
#define TMOEI_MERGE_WEIGHTS 65536            /* most tasks times experts */
#define TMOEI_MERGE_LINES 16  /* experts read side by side: more are too many for the prefetcher */
#define TMOEI_MERGE_AHEAD 128 /* floats */

typedef struct tmoei_merge_job {
    const float *experts; /* theta (E, n) */
    int expert_count, tasks;
    size_t block;         /* n */
    const float *route;   /* r (T, E) */
    size_t route_stride;  /* of r and dr */
    float *merged;        /* theta_bar (T, n), written in the forward pass */
    const float *g;       /* (T, n); NULL in the forward pass */
    float *dexperts, *dr; /* like experts and route, added to; NULL: not wanted */
    size_t grain;         /* parameters of a chunk */
} tmoei_merge_job;

static tmoei_merge_job tmoei_merge_job_of(const float *experts, int expert_count, size_t block,
    const float *route, size_t route_stride, int tasks)
{
    tmoei_merge_job job;
    memset(&job, 0, sizeof job);
    job.experts = experts;
    job.expert_count = expert_count;
    job.block = block;
    job.route = route;
    job.route_stride = route_stride;
    job.tasks = tasks;
    return job;
}

/* Parameters at .. at + n - 1 of several tasks: the product of r (T, E) and theta (E, n). */
static void tmoei_merge_tasks(const tmoei_kernels *kernels, const tmoei_merge_job *s, size_t at,
    size_t n)
{
    const size_t nr = (size_t)kernels->nr, block = s->block, stride = s->route_stride;
    const size_t end = at + n, whole = end - n % nr; /* up to here in tiles of nr columns */

    for (int e = 0; e < s->expert_count; e += TMOEI_MERGE_LINES) {
        const int lines = tmoei_least(TMOEI_MERGE_LINES, s->expert_count - e);
        for (size_t column = at; column < whole; column += nr) {
            const float *theta = s->experts + (size_t)e * block + column;
            for (size_t i = 0; i < (size_t)lines; i++)
                for (size_t j = 0; j < nr; j += 16)
                    TMOEI_PREFETCH(theta + i * block + TMOEI_MERGE_AHEAD + j);
            for (int t = 0; t < s->tasks; t += kernels->mr) {
                const tmoei_panel route = { s->route + (size_t)t * stride + e, stride, 1 };
                float *merged = s->merged + (size_t)t * block + column;
                const tmoei_output sums = tmoei_output_of(merged, block, e > 0 ? 1.0f : 0.0f);
                kernels->micro[tmoei_least(kernels->mr, s->tasks - t)](lines, &route, theta, block,
                    &sums, (int)nr);
            }
        }
    }

    if (whole == end) return;
    for (size_t t = 0; t < (size_t)s->tasks; t++)
        kernels->merge(s->merged + t * block + whole, 0, s->experts + whole, block,
            s->route + t * stride, s->expert_count, end - whole);
}

/* Parameters at .. at + n - 1 of expert e, backward, for tasks t .. t + 3 (fewer at the end). dots
 * (T, E): the a_te are added; NULL: not wanted. */
static void tmoei_merge_gradients(const tmoe_ctx *ctx, const tmoei_merge_job *s, float *dots,
    size_t e, size_t t, size_t at, size_t n)
{
    const size_t E = (size_t)s->expert_count, expert = e * s->block + at;
    const size_t tasks = tmoei_least_size((size_t)s->tasks - t, 4);
    int used = 0;
    tmoei_merge_lines lines;
    memset(&lines, 0, sizeof lines);
    for (size_t i = 0; i < tasks; i++) {
        lines.r[i] = s->route[(t + i) * s->route_stride + e];
        if (lines.r[i] != 0.0f) used = 1;
    }
    if (!used && !dots) return;

    lines.theta = s->experts + expert;
    lines.first = s->experts + at;
    lines.next = (ptrdiff_t)s->block;
    if (e + 1 == E)
        lines.next = (ptrdiff_t)n - (ptrdiff_t)(e * s->block); /* theta_0's next piece */
    lines.g = s->g + t * s->block + at;
    lines.stride = s->block;
    lines.tasks = (int)tasks;
    if (s->dexperts && used) lines.dtheta = s->dexperts + expert;
    ctx->kernels->merge_backward(&lines, n);
    if (!dots) return;
    for (size_t i = 0; i < tasks; i++) dots[(t + i) * E + e] += lines.dots[i];
}

/* A chunk's share of the a_te, (T, E), is in the shared scratch memory. */
static void tmoei_merge_sweep(const tmoe_ctx *ctx, const void *job, size_t at, size_t count)
{
    const tmoei_merge_job *s = (const tmoei_merge_job *)job;
    const size_t T = (size_t)s->tasks, E = (size_t)s->expert_count, end = at + count;
    float *dots = s->dr ? ctx->shared_scratch + at / s->grain * T * E : NULL;
    if (dots) memset(dots, 0, T * E * sizeof(float));

    while (at < end) {
        const size_t n = tmoei_least_size(end - at, TMOEI_MERGE_PIECE);
        if (s->g) {
            for (size_t e = 0; e < E; e++)
                for (size_t t = 0; t < T; t += 4) tmoei_merge_gradients(ctx, s, dots, e, t, at, n);
        } else if (T == 1)
            ctx->kernels->merge(s->merged + at, 0, s->experts + at, s->block, s->route,
                s->expert_count, n);
        else
            tmoei_merge_tasks(ctx->kernels, s, at, n);
        at += n;
    }
}

/* Runs a job on all lanes, backward where it has a g. dr is wanted only there. */
static void tmoei_merge(tmoe_ctx *ctx, tmoei_merge_job *job)
{
    const size_t T = (size_t)job->tasks, E = (size_t)job->expert_count;
    job->grain = TMOEI_SWEEP; /* larger where the chunks' shares would not fit */
    while (job->block / job->grain + 1 > TMOEI_SHARED_FLOATS / (T * E)) job->grain *= 2;
    tmoei_sweep(ctx, job->block, job->grain, tmoei_merge_sweep, job);
    if (!job->dr) return;

    /* dr_te += a_te - sum_e' r_te' a_te'; the chunks' shares are added in a fixed order */
    const size_t chunks = (job->block + job->grain - 1) / job->grain;
    for (size_t t = 0; t < T; t++) {
        const float *r = job->route + t * job->route_stride;
        float *d = ctx->shared_scratch + t * E, *dr = job->dr + t * job->route_stride;
        double bar = 0.0;
        for (size_t e = 0; e < E; e++) {
            double sum = 0.0;
            for (size_t chunk = 0; chunk < chunks; chunk++) sum += (double)d[chunk * T * E + e];
            d[e] = (float)sum;
            bar += (double)r[e] * (double)d[e];
        }
        for (size_t e = 0; e < E; e++) dr[e] += (float)((double)d[e] - bar);
    }
}

static void tmoei_mix_parameters_backward(tmoe_tape *tape, tmoei_node *node)
{
    tmoei_merge_job job = *(const tmoei_merge_job *)node->kept;
    float *droute = tmoei_grad_to_add(node, 0);
    job.g = node->y->dx;
    if (droute) job.dr = droute + (job.route - node->in[0]->x);
    tmoei_merge(tape->ctx, &job);
}

TMOE_DEF tmoe_tensor *tmoe_mix_parameters(tmoe_tape *tape, float *experts, float *gradients,
    int expert_count, int block, tmoe_tensor *route, int first)
{
    const int E = expert_count;
    if (!experts || !route || tape->ctx->error != TMOE_OK) return NULL;
    TMOEI_SHAPE_RULE(tape,
        E >= 1 && block >= 1 && first >= 0 && first <= route->cols - E
            && route->rows <= TMOEI_MERGE_WEIGHTS / E,
        "mix_parameters: %d experts of %d floats from column %d of a route (%d,%d); rows times "
        "experts at most %d",
        E, block, first, route->rows, route->cols, TMOEI_MERGE_WEIGHTS);

    /* With one task and a one-hot route nothing is merged: y is that expert's own block. */
    const int T = route->rows;
    int chosen = -1;
    if (T == 1 && !tape->dry) chosen = tmoei_one_hot(route->x + first, E);
    const size_t chosen_at = chosen < 0 ? 0 : (size_t)chosen * (size_t)block;
    tmoe_tensor *y = tmoei_tensor_new(tape, T, block, chosen < 0 ? NULL : experts + chosen_at);
    if (!y) return NULL;

    tmoei_merge_job job =
        tmoei_merge_job_of(experts, E, (size_t)block, route->x + first, (size_t)route->cols, T);
    job.merged = y->x;
    job.dexperts = gradients;
    if (chosen < 0 && !tape->dry) tmoei_merge(tape->ctx, &job);
    if (!tape->record || (!gradients && !route->wants_grad)) return y;

    y->wants_grad = 1;
    if (chosen >= 0 && !route->wants_grad) { /* its gradient is added to the expert's directly */
        y->dx = gradients + chosen_at;
        y->has_grad = 1;
        return y;
    }
    y->dx = tmoei_floats(tape, tmoei_elements(y));
    if (!y->dx) return NULL;
    ((tmoei_tensor *)y)->unwritten = 1;
    return tmoei_record(tape, y, tmoei_mix_parameters_backward, TMOEI_HAND_NONE, &job, sizeof job,
        &route, 1);
}

/* ==== >>layers: one forward pass of the transformer ==============================================
 * A pass runs for ONE group: packed sequences of one task, so one route. tmoei_layer_param and
 * tmoei_layer_output choose or mix experts; attention and feed-forward network see the weights of
 * an ordinary layer. */

typedef struct tmoei_pack { /* sequences one behind the other, no padding */
    int sequences, tokens;
    int *ids, *positions; /* (tokens) each */
    int *offsets;         /* (sequences + 1): sequence i has tokens offsets[i] .. offsets[i+1]-1 */
} tmoei_pack;

typedef struct tmoei_cache tmoei_cache;

typedef struct tmoei_pass {
    tmoe_model *model;
    tmoe_tape *tape;
    tmoe_tensor *route;  /* (1, R * E); NULL: no layer is routed, or `blocks` has what it gives */
    tmoe_tensor *vector; /* (1, k) of the task, where task_input has TMOE_TASK_VECTOR */

    /* training */
    float *grads; /* of theta + first on; NULL: nothing is trained */
    size_t first;
    int train;                 /* TMOE_TRAIN_ bits: what gets gradients */
    tmoe_tensor *const *mixed; /* (L): merged blocks, a row for each task of the step, or NULL */
    int group;                 /* the row of this group */
    int hard_training;         /* straight-through: experts with r_e = 0 run forward, for dl/dr */
    float dropout;
    uint64_t dropout_seed, dropout_stream, dropout_counter; /* the counter of the next mask */

    /* evaluation */
    float *const *blocks; /* (L): each routed layer's merged block, or NULL */
    tmoei_cache *cache;   /* a decoder that computes one position a pass, or NULL */

    /* what runs now; in a decoder, what the encoder read and its output */
    const tmoei_pack *pack, *memory_pack;
    tmoe_tensor *memory;
} tmoei_pass;

/* ---- attention to a cache of keys and values ----
 * A decoder that computes one position a pass keeps keys and values of the positions before. A slot
 * is (heads, 2, limit, W): a head reads its keys, then its values, as they lie. A table says which
 * slot holds position t of a row, so that rows of a beam search change places without moving keys.
 * Keys and values of the encoder's output lie in slots as long as each source. */
struct tmoei_cache {
    int beams, slots, rows;      /* rows of a request; requests * beams; rows that still run */
    int position, limit;         /* what is computed now, from 0; how many at most */
    int *slot_of, *next_slot_of; /* (slots, limit): the table */
    int *request_of;             /* (slots): which request row r belongs to */
    int *ids, *positions;        /* (slots): of the latest tokens */
    const tmoei_pack *source;    /* what the encoder read, a sequence for each request ... */
    tmoe_tensor memory;          /* ... and its output (source tokens, D) */
    float **keys;                /* (decoder layers, experts, 2): slots of positions; of memory */
    int experts;                 /* 1, or E where they run side by side */
    tmoei_owner own;

    /* the attention that is computed now */
    int cross;                    /* 1: to the encoder's output */
    float *layer_keys;            /* the slots of this layer and expert */
    const float *q;               /* a row's query (D), q_stride floats from row to row */
    size_t q_stride, heads, W, D; /* D = heads * W */
    float *y;                     /* (rows, D) */
};

/* Positions of a row that follow one another in a slot. */
typedef struct tmoei_cached_run {
    float *keys;   /* of the first position and head, W floats a position */
    size_t head;   /* floats from a head's keys to the next head's */
    size_t values; /* floats from a key to its value */
    int count;
} tmoei_cached_run;

/* The run that begins at position t of a row, of positions below `count`. */
static tmoei_cached_run tmoei_cached_run_at(const tmoei_cache *cache, int row, int t, int count)
{
    tmoei_cached_run run;
    size_t first, length; /* of the slot, in positions */
    if (cache->cross) {
        const int *source = cache->source->offsets + cache->request_of[row];
        first = (size_t)source[0];
        length = (size_t)(source[1] - source[0]);
        run.count = count - t;
    } else {
        const int *slot = cache->slot_of + (size_t)row * (size_t)cache->limit + t;
        length = (size_t)cache->limit;
        first = (size_t)*slot * length;
        run.count = 1;
        while (t + run.count < count && slot[run.count] == *slot) run.count++;
    }
    run.keys = cache->layer_keys + first * 2 * cache->D + (size_t)t * cache->W;
    run.values = length * cache->W;
    run.head = 2 * run.values;
    return run;
}

/* Stores [k | v] (2D) as position t of a row. */
static void tmoei_cached_store(const tmoei_cache *cache, int row, int t, const float *kv)
{
    const tmoei_cached_run run = tmoei_cached_run_at(cache, row, t, t + 1);
    const size_t W = cache->W;
    for (size_t head = 0; head < cache->heads; head++) {
        float *key = run.keys + head * run.head;
        memcpy(key, kv + head * W, W * sizeof(float));
        memcpy(key + run.values, kv + cache->D + head * W, W * sizeof(float));
    }
}

/* One row attends, head by head, to its positions 0 .. position, or to its request's source:
 *   y = sum_t p_t v_t,   p = softmax(q k^T / sqrt(W)) */
static void tmoei_cached_chunk(void *arg, int row, int lane)
{
    const tmoei_cache *cache = (const tmoei_cache *)arg;
    const tmoei_kernels *kernels = cache->own.ctx->kernels;
    const int *source = cache->source->offsets + cache->request_of[row];
    const int count = cache->cross ? source[1] - source[0] : cache->position + 1;
    const size_t all = (size_t)count, W = cache->W;
    const float scale = 1.0f / sqrtf((float)W);
    float *p = cache->own.ctx->lane_scratch[lane];
    tmoei_cached_run run;

    for (size_t head = 0; head < cache->heads; head++) {
        const float *q = cache->q + (size_t)row * cache->q_stride + head * W;
        float *y = cache->y + (size_t)row * cache->D + head * W;
        for (int t = 0; t < count; t += run.count) {
            run = tmoei_cached_run_at(cache, row, t, count);
            const float *keys = run.keys + head * run.head;
            const tmoei_matrix query = tmoei_matrix_of(q, 1, (int)W, cache->D);
            const tmoei_matrix key = tmoei_matrix_of(keys, run.count, (int)W, W);
            const tmoei_output scores = tmoei_output_of(p + t, all, 0.0f);
            kernels->dots(&query, &key, &scores);
        }
        const float top = scale * kernels->maximum(p, all);
        kernels->scale_add(p, 0.0f, 1.0f / kernels->exp_sum(p, p, scale, top, all), p, all);
        for (int t = 0; t < count; t += run.count) {
            run = tmoei_cached_run_at(cache, row, t, count);
            const float *values = run.keys + head * run.head + run.values;
            kernels->merge(y, t > 0, values, W, p + t, run.count, W);
        }
    }
}

/* Attention of all rows; returns (rows, D). Self-attention: x is [q | k | v] (rows, 3D) of the
 * present position, whose k and v are stored. Cross-attention: x is q (rows, D); the first pass
 * stores the keys and values of the encoder's output, kv = memory w^T + b with cross = {w, b}. */
static tmoe_tensor *tmoei_cached_attention(tmoei_pass *pass, int l, int expert,
    tmoe_tensor *const *cross, const tmoe_tensor *x)
{
    tmoei_cache *cache = pass->cache;
    const tmoe_config *c = &pass->model->config;
    const size_t D = (size_t)c->width;
    const size_t positions =
        cross ? (size_t)cache->memory.rows : (size_t)cache->limit * (size_t)cache->slots;
    const int place = (l - c->encoder_layers) * cache->experts + expert;
    float **keys = &cache->keys[2 * place + (cross ? 1 : 0)];
    const int first_pass = *keys == NULL;
    if (!x) return NULL;
    tmoe_tensor *y = tmoei_tensor_new(pass->tape, x->rows, c->width, NULL);
    if (first_pass)
        *keys = (float *)tmoei_own_block(&cache->own, positions * 2 * D, sizeof(float), 0);
    if (!*keys || !y) return NULL;

    cache->cross = cross != NULL;
    cache->layer_keys = *keys;
    cache->q = x->x;
    cache->q_stride = (size_t)x->cols;
    cache->heads = (size_t)c->decoder_heads;
    cache->W = D / cache->heads;
    cache->D = D;
    cache->y = y->x;

    for (int row = 0; !cross && row < cache->rows; row++)
        tmoei_cached_store(cache, row, cache->position, x->x + (size_t)row * 3 * D + D);
    if (cross && first_pass) {
        tmoe_tensor *kv =
            tmoe_linear(pass->tape, &cache->memory, cross[0], cross[1], TMOE_NONE, NULL);
        if (!kv) return NULL;
        for (int request = 0; request < cache->source->sequences; request++) {
            const int first = cache->source->offsets[request];
            for (int at = first; at < cache->source->offsets[request + 1]; at++)
                tmoei_cached_store(cache, request * cache->beams, at - first,
                    kv->x + (size_t)at * 2 * D);
        }
        tmoei_arena_release(&pass->tape->big, kv->x, tmoei_elements(kv), sizeof(float));
    }
    tmoei_parallel(cache->own.ctx, tmoei_cached_chunk, cache, cache->rows);
    return y;
}

/* ---- the weights of a layer as tensors ---- */

/* Where gradients of theta + offset are added, if what `bit` names is trained; else NULL. */
static float *tmoei_pass_grads(const tmoei_pass *pass, int bit, size_t offset)
{
    return pass->grads && (pass->train & bit) ? pass->grads + (offset - pass->first) : NULL;
}

static tmoe_tensor *tmoei_block_leaf(tmoei_pass *pass, size_t offset, size_t size)
{
    return tmoe_leaf(pass->tape, 1, (int)size, pass->model->theta + offset,
        tmoei_pass_grads(pass, TMOE_TRAIN_LAYERS, offset));
}

/* A tensor outside the layers, or NULL where the model does not have it. */
static tmoe_tensor *tmoei_shared_tensor(tmoei_pass *pass, int which)
{
    const int index = pass->model->shared[which];
    if (index < 0) return NULL;
    const tmoei_parameter *p = &pass->model->parameters[index];
    float *grads =
        p->rate == TMOEI_RATE_NONE ? NULL : tmoei_pass_grads(pass, TMOE_TRAIN_SHARED, p->offset);
    return tmoe_leaf(pass->tape, p->rows, p->cols, pass->model->theta + p->offset, grads);
}

/* The pieces of a layer that lie in `block` (the shared part or an expert) as matrices. */
static void tmoei_layer_pieces(tmoei_pass *pass, const tmoei_layer *layer, tmoe_tensor *block,
    int in_expert, tmoe_tensor **w)
{
    for (int p = 0; p < TMOEI_PIECES; p++)
        if (layer->rows[p] && layer->in_expert[p] == in_expert)
            w[p] = tmoei_part(pass->tape, block, layer->offset[p], layer->rows[p], layer->cols[p]);
}

/* Row t of what tmoe_mix_parameters made for all tasks of a step, as a leaf of a group's tape. */
static tmoe_tensor *tmoei_mixed_row(tmoe_tape *tape, tmoe_tensor *mixed, int t)
{
    if (!mixed) return NULL;
    mixed->has_grad = mixed->wants_grad; /* the row's parts write it */
    const size_t at = (size_t)t * (size_t)mixed->cols;
    tmoe_tensor *row =
        tmoe_leaf(tape, 1, mixed->cols, mixed->x + at, mixed->dx ? mixed->dx + at : NULL);
    if (row) ((tmoei_tensor *)row)->unwritten = 1;
    return row;
}

/* What a layer of PARAM mix runs on: theta_bar, merged before or here; theta_0 if it is dense. */
static tmoe_tensor *tmoei_layer_block(tmoei_pass *pass, int l)
{
    const tmoei_layer *layer = &pass->model->layers[l];
    const int E = layer->experts, size = (int)layer->block_size;
    if (E == 1) return tmoei_block_leaf(pass, layer->block, layer->block_size);
    if (pass->blocks) return tmoe_leaf(pass->tape, 1, size, pass->blocks[l], NULL);
    if (pass->mixed) return tmoei_mixed_row(pass->tape, pass->mixed[l], pass->group);
    return tmoe_mix_parameters(pass->tape, pass->model->theta + layer->block,
        tmoei_pass_grads(pass, TMOE_TRAIN_LAYERS, layer->block), E, size, pass->route,
        layer->route * E);
}

/* ---- one layer: attention, feed-forward network, residuals and norms ---- */

static tmoe_tensor *tmoei_pass_dropout(tmoei_pass *pass, tmoe_tensor *x)
{
    const uint64_t mask =
        tmoei_random(pass->dropout_seed, pass->dropout_stream, pass->dropout_counter);
    pass->dropout_counter++;
    return tmoei_dropout(pass->tape, x, pass->dropout, (uint32_t)mask);
}

/* The beginning of a sublayer: act(h w^T + b). PRE norms h first; POST takes it as it is. */
static tmoe_tensor *tmoei_sublayer_input(tmoei_pass *pass, tmoe_tensor *const *w, tmoe_tensor *h,
    int norm, int linear, tmoe_activation act)
{
    if (pass->model->config.norm == TMOE_NORM_PRE)
        h = tmoe_layer_norm(pass->tape, h, w[norm], w[norm + 1]);
    return tmoe_linear(pass->tape, h, w[linear], w[linear + 1], act, NULL);
}

/* The end of a sublayer: h + dropout(x w^T + b), which POST norms. */
static tmoe_tensor *tmoei_sublayer_output(tmoei_pass *pass, tmoe_tensor *const *w, tmoe_tensor *h,
    tmoe_tensor *x, int norm, int linear)
{
    const int drops = pass->dropout > 0.0f;
    x = tmoe_linear(pass->tape, x, w[linear], w[linear + 1], TMOE_NONE, drops ? NULL : h);
    if (drops) x = tmoe_add(pass->tape, h, tmoei_pass_dropout(pass, x));
    if (pass->model->config.norm == TMOE_NORM_PRE) return x;
    return tmoe_layer_norm(pass->tape, x, w[norm], w[norm + 1]);
}

/* With ROTARY, q and k of [q | k | v] are turned by their positions, in place: x is the result of a
 * linear layer, and nothing else reads it. A cache then stores keys that are turned. */
static tmoe_tensor *tmoei_turn(tmoei_pass *pass, int decoder, tmoe_tensor *x)
{
    const tmoe_config *c = &pass->model->config;
    const int positions = decoder ? c->target_tokens : c->source_tokens;
    const int W = c->width / (decoder ? c->decoder_heads : c->encoder_heads);
    if (c->positions != TMOE_POSITION_ROTARY) return x;
    tmoe_tensor *table = tmoe_leaf(pass->tape, positions, W, pass->model->rotary[decoder], NULL);
    return tmoei_rotary(pass->tape, x, 2 * c->width, table, pass->pack->positions, 1);
}

/* Self-attention and, in a decoder, cross-attention over the encoder's output. */
static tmoe_tensor *tmoei_attend(tmoei_pass *pass, int l, int expert, tmoe_tensor *const *w,
    tmoe_tensor *h)
{
    const tmoei_layer *layer = &pass->model->layers[l];
    const tmoei_pack *pack = pass->pack;
    tmoe_tape *tape = pass->tape;
    tmoe_tensor *x = tmoei_sublayer_input(pass, w, h, TMOEI_SELF_NORM, TMOEI_SELF_QKV, TMOE_NONE);
    x = tmoei_turn(pass, layer->decoder, x);
    if (pass->cache)
        x = tmoei_cached_attention(pass, l, expert, NULL, x);
    else
        x = tmoe_attention(tape, x, x, layer->heads, pack->sequences, pack->offsets, pack->offsets,
            layer->decoder);
    h = tmoei_sublayer_output(pass, w, h, x, TMOEI_SELF_NORM, TMOEI_SELF_OUT);
    if (!layer->decoder) return h;

    x = tmoei_sublayer_input(pass, w, h, TMOEI_CROSS_NORM, TMOEI_CROSS_Q, TMOE_NONE);
    if (pass->cache) {
        x = tmoei_cached_attention(pass, l, expert, w + TMOEI_CROSS_KV, x);
    } else {
        tmoe_tensor *kv = tmoe_linear(tape, pass->memory, w[TMOEI_CROSS_KV], w[TMOEI_CROSS_KV_BIAS],
            TMOE_NONE, NULL);
        x = tmoe_attention(tape, x, kv, layer->heads, pack->sequences, pack->offsets,
            pass->memory_pack->offsets, 0);
    }
    return tmoei_sublayer_output(pass, w, h, x, TMOEI_CROSS_NORM, TMOEI_CROSS_OUT);
}

static tmoe_tensor *tmoei_ffn_sublayer(tmoei_pass *pass, tmoe_tensor *const *w, tmoe_tensor *h)
{
    const tmoe_activation act = pass->model->config.activation;
    tmoe_tensor *x = tmoei_sublayer_input(pass, w, h, TMOEI_FFN_NORM, TMOEI_FC1, act);
    return tmoei_sublayer_output(pass, w, h, x, TMOEI_FFN_NORM, TMOEI_FC2);
}

/* PARAM mix:   theta_bar = sum_e r_e theta_e,   h' = layer(h; theta_bar)
 * A dense layer is the case E = 1, r = 1. */
static tmoe_tensor *tmoei_layer_param(tmoei_pass *pass, int l, tmoe_tensor **w, tmoe_tensor *h)
{
    tmoei_layer_pieces(pass, &pass->model->layers[l], tmoei_layer_block(pass, l), 1, w);
    h = tmoei_attend(pass, l, 0, w, h);
    return tmoei_ffn_sublayer(pass, w, h);
}

/* OUTPUT mix:   h' = sum_e r_e layer(h; theta_e)
 * Experts with r_e = 0 do not run; in training by straight-through they run forward (>>mix). Where
 * an expert is an FFN, attention is shared. */
static tmoe_tensor *tmoei_layer_output(tmoei_pass *pass, int l, tmoe_tensor **w, tmoe_tensor *h)
{
    const tmoei_layer *layer = &pass->model->layers[l];
    const int E = layer->experts, first = layer->route * E, recording = pass->tape->record;
    const int whole = pass->model->config.expert_kind == TMOE_EXPERT_LAYER;
    tmoe_tensor *outputs[TMOEI_EXPERTS_MAX];
    if (!whole) h = tmoei_attend(pass, l, 0, w, h);

    for (int e = 0; e < E; e++) {
        const float r = pass->tape->dry ? 1.0f : pass->route->x[first + e];
        outputs[e] = NULL;
        if (r == 0.0f && !pass->hard_training) continue;
        pass->tape->record = recording && r != 0.0f;
        tmoe_tensor *block =
            tmoei_block_leaf(pass, layer->block + (size_t)e * layer->block_size, layer->block_size);
        tmoei_layer_pieces(pass, layer, block, 1, w);
        tmoe_tensor *x = whole ? tmoei_attend(pass, l, e, w, h) : h;
        outputs[e] = tmoei_ffn_sublayer(pass, w, x);
        pass->tape->record = recording;
    }
    return tmoe_mix_outputs(pass->tape, outputs, E, pass->route, first);
}

static tmoe_tensor *tmoei_layer_forward(tmoei_pass *pass, int l, tmoe_tensor *h)
{
    const tmoei_layer *layer = &pass->model->layers[l];
    tmoe_tensor *w[TMOEI_PIECES]; /* the layer's weights, by piece */
    memset(w, 0, sizeof w);
    if (layer->shared_size > 0) {
        tmoe_tensor *shared = tmoei_block_leaf(pass, layer->shared, layer->shared_size);
        tmoei_layer_pieces(pass, layer, shared, 0, w);
    }
    if (layer->experts == 1 || pass->model->config.mix == TMOE_MIX_PARAM)
        return tmoei_layer_param(pass, l, w, h);
    return tmoei_layer_output(pass, l, w, h);
}

/* The norm outside the layers: PRE has it after the last layer, POST after the embedding. */
static tmoe_tensor *tmoei_outer_norm(tmoei_pass *pass, tmoe_tensor *h, int decoder, tmoe_norm here)
{
    const int gain = decoder ? TMOEI_DECODER_NORM : TMOEI_ENCODER_NORM;
    if (pass->model->config.norm != here) return h;
    return tmoe_layer_norm(pass->tape, h, tmoei_shared_tensor(pass, gain),
        tmoei_shared_tensor(pass, gain + 1));
}

/* What a task adds to every embedding: P e, the row of a task that was cut out, or NULL. */
static tmoe_tensor *tmoei_task_row(tmoei_pass *pass, int decoder)
{
    const tmoe_config *c = &pass->model->config;
    tmoe_tensor *p = tmoei_shared_tensor(pass, decoder ? TMOEI_DECODER_TASK : TMOEI_ENCODER_TASK);
    if (!(c->task_input & TMOE_TASK_VECTOR)) return p;
    return tmoei_task_product(pass->tape, c, pass->vector, p);
}

/* dropout(norm of POST(scale * token + (position + task))). The task is added to the table of
 * positions, not to the tokens: so a model in whose table it is folded gives the same bits. */
static tmoe_tensor *tmoei_embed(tmoei_pass *pass, const tmoei_pack *pack, int decoder)
{
    const tmoe_config *c = &pass->model->config;
    const float scale = c->scale_embedding ? sqrtf((float)c->width) : 1.0f;
    const size_t T = (size_t)pack->tokens;
    const int *places = pack->positions;
    tmoe_tensor *tokens = tmoei_shared_tensor(pass, TMOEI_TOKENS);
    tmoe_tensor *added =
        tmoei_shared_tensor(pass, decoder ? TMOEI_DECODER_POSITIONS : TMOEI_ENCODER_POSITIONS);
    tmoe_tensor *task = tmoei_task_row(pass, decoder);
    if (added && task) {
        added = tmoe_add(pass->tape, added, task);
    } else if (task) { /* a table of one row */
        int *first = (int *)tmoei_arena_alloc(&pass->tape->nodes, T, sizeof *first);
        if (!first) return NULL;
        memset(first, 0, T * sizeof *first);
        added = task;
        places = first;
    }
    tmoe_tensor *h =
        tmoe_embedding(pass->tape, tokens, pack->tokens, pack->ids, scale, added, places);
    return tmoei_pass_dropout(pass, tmoei_outer_norm(pass, h, decoder, TMOE_NORM_POST));
}

/* Encoder or decoder: embedding, layers, norm of PRE. */
static tmoe_tensor *tmoei_stack(tmoei_pass *pass, const tmoei_pack *pack, int decoder)
{
    tmoe_tensor *h = tmoei_embed(pass, pack, decoder);
    pass->pack = pack;
    for (int l = 0; l < pass->model->L; l++)
        if (pass->model->layers[l].decoder == decoder) h = tmoei_layer_forward(pass, l, h);
    return tmoei_outer_norm(pass, h, decoder, TMOE_NORM_PRE);
}

static tmoe_tensor *tmoei_encode(tmoei_pass *pass, const tmoei_pack *x)
{
    return tmoei_stack(pass, x, 0);
}

static tmoe_tensor *tmoei_decode(tmoei_pass *pass, const tmoei_pack *target, tmoe_tensor *memory,
    const tmoei_pack *source)
{
    pass->memory = memory;
    pass->memory_pack = source;
    return tmoei_stack(pass, target, 1);
}

/* Logits over the vocabulary: h tokens^T + bias, the head is the token embedding. */
static tmoe_tensor *tmoei_head(tmoei_pass *pass, tmoe_tensor *h)
{
    return tmoe_linear(pass->tape, h, tmoei_shared_tensor(pass, TMOEI_TOKENS),
        tmoei_shared_tensor(pass, TMOEI_OUTPUT_BIAS), TMOE_NONE, NULL);
}

/* ==== >>router: from a task's vector to its route ================================================
 *   z_t = router(e_t)           e_t a row (k) for each of K tasks, z_t a row of R * E logits
 *   r_t,l = select(z_t,l)       a row of E weights for each task and routed layer
 * Ten kinds: `linear` and `linear_layer_specific` are MLPs. The others read a sequence with one
 * element for each routed layer: the task vector plus a learned position of the layer, or (layer
 * specific) a projection of the task vector for each layer. */

/* Tensors are taken in the order of tmoei_router_plan; the comments name them. */
typedef struct tmoei_router {
    const tmoe_model *model;
    tmoe_tape *tape;
    float *grads; /* of the router's first parameter on; NULL: it is not trained */
    int taken;
    tmoe_tensor **parts; /* room for 2 R */
} tmoei_router;

static tmoe_tensor *tmoei_router_take(tmoei_router *router)
{
    const tmoe_model *model = router->model;
    const tmoei_parameter *first = &model->parameters[model->router_parameter];
    const tmoei_parameter *p = first + router->taken++;
    float *grads = router->grads ? router->grads + (p->offset - first->offset) : NULL;
    return tmoe_leaf(router->tape, p->rows, p->cols, model->theta + p->offset, grads);
}

static tmoe_tensor *tmoei_router_linear(tmoei_router *router, tmoe_tensor *x, tmoe_activation act,
    tmoe_tensor *residual)
{
    tmoe_tensor *w = tmoei_router_take(router);
    tmoe_tensor *b = tmoei_router_take(router);
    return tmoe_linear(router->tape, x, w, b, act, residual);
}

static tmoe_tensor *tmoei_router_norm(tmoei_router *router, tmoe_tensor *x)
{
    tmoe_tensor *gain = tmoei_router_take(router);
    tmoe_tensor *bias = tmoei_router_take(router);
    return tmoe_layer_norm(router->tape, x, gain, bias);
}

/* z = w2 gelu(w1 e + b1) + b2, one MLP for all layers or one for each */
static tmoe_tensor *tmoei_router_mlp(tmoei_router *router, tmoe_tensor *e)
{
    const int mlps = tmoei_router_specific(&router->model->config) ? router->model->R : 1;
    tmoe_tensor **z = router->parts;
    for (int l = 0; l < mlps; l++) {
        tmoe_tensor *x = tmoei_router_linear(router, e, TMOE_GELU, NULL); /* linear1 */
        z[l] = tmoei_router_linear(router, x, TMOE_NONE, NULL);           /* linear2 */
    }
    return mlps == 1 ? z[0] : tmoe_concat(router->tape, z, mlps);
}

/* The sequence that the others read: (K, R * width). */
static tmoe_tensor *tmoei_router_sequence(tmoei_router *router, tmoe_tensor *e)
{
    const int R = router->model->R;
    if (tmoei_router_specific(&router->model->config))
        return tmoei_router_linear(router, e, TMOE_NONE, NULL); /* layer_projection */
    for (int l = 0; l < R; l++) router->parts[l] = e;
    tmoe_tensor *positions = tmoei_router_take(router); /* layer_positions */
    return tmoe_add(router->tape, tmoe_concat(router->tape, router->parts, R), positions);
}

/* ---- recurrent routers; gates in torch's order ----
 *                                                       a = W_x x + b_x,   u = W_h h + b_h
 *   RNN   h' = tanh(a + u)
 *   GRU   reset, keep = sigmoid(a + u);  n = tanh(a_n + reset u_n);  h' = n + keep (h - n)
 *   LSTM  in, keep, out = sigmoid(a + u);  g = tanh(a + u)
 *         c' = keep c + in g;  h' = out tanh(c') */
static tmoe_tensor *tmoei_router_gate(tmoei_router *router, tmoe_tensor *sum, int gate,
    tmoe_activation act)
{
    const int hidden = router->model->config.router_hidden;
    return tmoe_activate(router->tape, tmoe_slice(router->tape, sum, gate * hidden, hidden), act);
}

static tmoe_tensor *tmoei_router_gru(tmoei_router *router, tmoe_tensor *a, tmoe_tensor *u,
    tmoe_tensor *h)
{
    tmoe_tape *tape = router->tape;
    const int hidden = router->model->config.router_hidden;
    tmoe_tensor *sum = tmoe_add(tape, a, u);
    tmoe_tensor *reset = tmoei_router_gate(router, sum, 0, TMOE_SIGMOID);
    tmoe_tensor *keep = tmoei_router_gate(router, sum, 1, TMOE_SIGMOID);
    tmoe_tensor *n = tmoe_multiply(tape, reset, tmoe_slice(tape, u, 2 * hidden, hidden));
    n = tmoe_add(tape, tmoe_slice(tape, a, 2 * hidden, hidden), n);
    n = tmoe_activate(tape, n, TMOE_TANH);
    tmoe_tensor *change = tmoe_add(tape, h, tmoe_affine(tape, n, -1.0f, 0.0f));
    return tmoe_add(tape, n, tmoe_multiply(tape, keep, change));
}

static tmoe_tensor *tmoei_router_lstm(tmoei_router *router, tmoe_tensor *sum, tmoe_tensor **c)
{
    tmoe_tape *tape = router->tape;
    tmoe_tensor *in = tmoei_router_gate(router, sum, 0, TMOE_SIGMOID);
    tmoe_tensor *keep = tmoei_router_gate(router, sum, 1, TMOE_SIGMOID);
    tmoe_tensor *g = tmoei_router_gate(router, sum, 2, TMOE_TANH);
    tmoe_tensor *out = tmoei_router_gate(router, sum, 3, TMOE_SIGMOID);
    tmoe_tensor *kept = tmoe_multiply(tape, keep, *c);
    *c = tmoe_add(tape, kept, tmoe_multiply(tape, in, g));
    return tmoe_multiply(tape, out, tmoe_activate(tape, *c, TMOE_TANH));
}

/* One direction over the R elements of x: states[l] (K, hidden). */
static void tmoei_router_direction(tmoei_router *router, tmoe_tensor *x, int backward,
    tmoe_tensor **states)
{
    const tmoe_config *config = &router->model->config;
    const tmoei_router_family family = tmoei_router_family_of(config);
    const int R = router->model->R, width = tmoei_router_width(config);
    tmoe_tape *tape = router->tape;
    tmoe_tensor *wx = tmoei_router_take(router), *bx = tmoei_router_take(router); /* input */
    tmoe_tensor *wh = tmoei_router_take(router), *bh = tmoei_router_take(router); /* hidden */
    tmoe_tensor *h = x ? tmoei_tensor_new(tape, x->rows, config->router_hidden, NULL) : NULL;
    if (h && !tape->dry) memset(h->x, 0, tmoei_elements(h) * sizeof(float));
    tmoe_tensor *c = h; /* the LSTM's cell, zeros at first */

    for (int step = 0; step < R; step++) {
        const int l = backward ? R - 1 - step : step;
        tmoe_tensor *a = tmoe_slice(tape, x, l * width, width);
        a = tmoe_linear(tape, a, wx, bx, TMOE_NONE, NULL);
        tmoe_tensor *u = tmoe_linear(tape, h, wh, bh, TMOE_NONE, NULL);
        if (family == TMOEI_ROUTER_RNN)
            h = tmoei_router_gate(router, tmoe_add(tape, a, u), 0, TMOE_TANH);
        else if (family == TMOEI_ROUTER_GRU)
            h = tmoei_router_gru(router, a, u, h);
        else
            h = tmoei_router_lstm(router, tmoe_add(tape, a, u), &c);
        states[l] = h;
    }
}

/* z_l = w [forward_l | backward_l] + b */
static tmoe_tensor *tmoei_router_recurrent(tmoei_router *router, tmoe_tensor *x)
{
    const int R = router->model->R;
    tmoe_tensor **forward = router->parts, **backward = router->parts + R;
    tmoei_router_direction(router, x, 0, forward);
    tmoei_router_direction(router, x, 1, backward);
    tmoe_tensor *w = tmoei_router_take(router), *b = tmoei_router_take(router); /* projection */
    for (int l = 0; l < R; l++) {
        tmoe_tensor *both[2] = { forward[l], backward[l] };
        tmoe_tensor *h = tmoe_concat(router->tape, both, 2);
        forward[l] = tmoe_linear(router->tape, h, w, b, TMOE_NONE, NULL); /* from here on: z_l */
    }
    return tmoe_concat(router->tape, forward, R);
}

/* One POST layer over the R elements of each task. */
static tmoe_tensor *tmoei_router_transformer(tmoei_router *router, tmoe_tensor *x)
{
    const int R = router->model->R, E = router->model->config.experts;
    const int width = tmoei_router_width(&router->model->config);
    tmoe_tape *tape = router->tape;
    if (!x) return NULL;
    const int K = x->rows;
    int *offsets = (int *)tmoei_arena_alloc(&tape->nodes, (size_t)K + 1, sizeof *offsets);
    if (!offsets) return NULL;
    for (int t = 0; t <= K; t++) offsets[t] = t * R;

    x = tmoe_reshape(tape, x, K * R, width);
    tmoe_tensor *a = tmoei_router_linear(router, x, TMOE_NONE, NULL); /* attention.qkv */
    a = tmoe_attention(tape, a, a, TMOEI_ROUTER_HEADS, K, offsets, offsets, 0);
    a = tmoei_router_linear(router, a, TMOE_NONE, x);    /* attention.out */
    x = tmoei_router_norm(router, a);                    /* norm1 */
    a = tmoei_router_linear(router, x, TMOE_RELU, NULL); /* linear1 */
    a = tmoei_router_linear(router, a, TMOE_NONE, x);    /* linear2 */
    x = tmoei_router_norm(router, a);                    /* norm2 */
    x = tmoei_router_linear(router, x, TMOE_NONE, NULL); /* projection */
    return tmoe_reshape(tape, x, K, R * E);
}

static tmoe_tensor *tmoei_router_own(tmoei_router *router, tmoe_tensor *e)
{
    const tmoe_own_router *own = &router->model->own_router;
    tmoe_tape *tape = router->tape;
    const int columns = (int)router->model->route_width, n = own->parameter_count;
    tmoe_tensor **parameters =
        (tmoe_tensor **)tmoei_arena_alloc(&tape->nodes, (size_t)n + 1, sizeof *parameters);
    if (!parameters) return NULL;
    for (int i = 0; i < n; i++) parameters[i] = tmoei_router_take(router);
    if (tape->ctx->error != TMOE_OK) return NULL;

    tmoe_tensor *z = own->logits(own->user, tape, e, parameters, columns);
    if (!z) {
        (void)tmoei_fail(tape->ctx, TMOE_ERR_CANCELLED, "the router of the program gave no logits");
        return NULL;
    }
    TMOEI_SHAPE_RULE(tape, z->rows == e->rows && z->cols == columns,
        "the router of the program: logits (%d,%d); they must be (%d,%d)", z->rows, z->cols,
        e->rows, columns);
    return z;
}

/* Logits z (K, R * E) of K task vectors e (K, k). */
static tmoe_tensor *tmoei_router_logits(const tmoe_model *model, tmoe_tape *tape, float *grads,
    tmoe_tensor *e)
{
    const tmoei_router_family family = tmoei_router_family_of(&model->config);
    tmoe_tensor **parts =
        (tmoe_tensor **)tmoei_arena_alloc(&tape->nodes, 2 * (size_t)model->R, sizeof *parts);
    tmoei_router router = { model, tape, grads, 0, parts };
    const float scale = tmoei_vector_scale(&model->config);
    if (scale != 1.0f) e = tmoe_affine(tape, e, scale, 0.0f);
    if (!e || !parts) return NULL;
    if (family == TMOEI_ROUTER_OF_USER) return tmoei_router_own(&router, e);
    if (family == TMOEI_ROUTER_MLP) return tmoei_router_mlp(&router, e);
    tmoe_tensor *x = tmoei_router_sequence(&router, e);
    if (family == TMOEI_ROUTER_TRANSFORMER) return tmoei_router_transformer(&router, x);
    return tmoei_router_recurrent(&router, x);
}

/* tau(step) = max(tau_0 exp(-decay * step), tau_min) */
TMOE_DEF float tmoe_model_temperature(const tmoe_model *model)
{
    const tmoe_config *c = &model->config;
    const double tau =
        (double)c->temperature * exp(-(double)c->temperature_decay * (double)model->step);
    return tau > (double)c->temperature_min ? (float)tau : c->temperature_min;
}

/* r (K * R, E) = select(z + mask + noise) of logits z (K, R * E), at the model's temperature. */
static tmoe_tensor *tmoei_routes_of_logits(const tmoe_model *model, tmoe_tape *tape, tmoe_tensor *z,
    const float *noise)
{
    const int R = model->R, E = model->config.experts;
    if (!z) return NULL;
    tmoe_tensor *mask = tmoe_leaf(tape, 1, R * E, model->mask, NULL);
    z = tmoe_reshape(tape, tmoe_add(tape, z, mask), z->rows * R, E);
    return tmoe_select(tape, z, noise, tmoe_model_temperature(model),
        model->config.selection == TMOE_SELECT_STRAIGHT_THROUGH);
}

static int tmoei_selection_has_router(tmoe_selection s)
{
    return s == TMOE_SELECT_SOFTMAX || s == TMOE_SELECT_GUMBEL || s == TMOE_SELECT_STRAIGHT_THROUGH;
}

/* Sets masked experts to 0 and scales the rest to a sum of 1; where the rest is 0, evenly. */
static void tmoei_route_mask(float *route, const float *mask, int E)
{
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    float sum = 0.0f, enabled = 0.0f;
    for (int e = 0; e < E; e++)
        if (mask[e] == 0.0f) {
            sum += route[e];
            enabled += 1.0f;
        }
    for (int e = 0; e < E; e++) {
        if (mask[e] != 0.0f)
            route[e] = 0.0f;
        else if (sum > 0.0f)
            route[e] /= sum;
        else
            route[e] = 1.0f / enabled;
    }
    tmoei_float_mode_leave(mode);
}

/* 1 / n for n experts of each layer, drawn from (seed, stream, at): all of them (AVERAGE),
 * random_n (RANDOM_TASK) or one (RANDOM_EXAMPLE). */
static void tmoei_route_without_router(const tmoe_model *model, uint64_t stream, uint64_t at,
    float *route)
{
    const tmoe_config *c = &model->config;
    const int E = c->experts, R = model->R;
    int order[TMOEI_EXPERTS_MAX], n = 1;
    if (c->selection == TMOE_SELECT_AVERAGE) n = E;
    if (c->selection == TMOE_SELECT_RANDOM_TASK) n = c->random_n;
    memset(route, 0, model->route_width * sizeof(float));
    for (int l = 0; l < R; l++) {
        const uint64_t row = at * (uint64_t)R + (uint64_t)l;
        float *r = route + l * E;
        (void)tmoei_draw(c->seed, stream, row * TMOEI_EXPERTS_MAX, order, E, n);
        for (int i = 0; i < n; i++) r[order[i]] = 1.0f / (float)n;
        tmoei_route_mask(r, model->mask + l * E, E);
    }
}

/* Routes (K, R * E) of K task vectors, free of noise, into `routes`. */
static tmoe_result tmoei_routes_of_vectors(tmoe_model *model, const float *vectors, int K,
    float *routes)
{
    tmoe_tape *tape = model->tape;
    tmoe_tape_reset(tape);
    tmoe_tensor *e = tmoei_tensor_new(tape, K, model->config.vector_width, NULL);
    if (!e) return model->ctx->error;
    if (!tape->dry) memcpy(e->x, vectors, tmoei_elements(e) * sizeof(float));
    tmoe_tensor *z = tmoei_router_logits(model, tape, NULL, e);
    const tmoe_tensor *r = tmoei_routes_of_logits(model, tape, z, NULL);
    if (!r) return model->ctx->error;
    if (tape->dry) return TMOE_OK;
    memcpy(routes, r->x, tmoei_elements(r) * sizeof(float));
    return TMOE_OK;
}

/* Makes model->routes hold every known task's route for the present parameters. */
static tmoe_result tmoei_routes_refresh(tmoe_model *model)
{
    const int dry = model->tape->dry;
    if ((model->routes_version == model->version && !dry) || model->R == 0) return TMOE_OK;
    if (tmoei_selection_has_router(model->config.selection)) {
        const float *vectors = model->theta + model->vectors;
        TMOEI_TRY(tmoei_routes_of_vectors(model, vectors, model->N, model->routes));
    } else {
        for (int t = 0; t < model->N; t++)
            tmoei_route_without_router(model, TMOEI_STREAM_TASK_ROUTES, (uint64_t)t,
                model->routes + (size_t)t * model->route_width);
    }
    if (!dry) model->routes_version = model->version;
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_route_of_task(tmoe_model *model, int task, float *route)
{
    tmoei_begin(model->ctx);
    if (task < 0 || task >= model->N)
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "route_of_task: task %d; the model knows tasks 0 to %d", task, model->N - 1);
    TMOEI_TRY(tmoei_routes_refresh(model));
    memcpy(route, model->routes + (size_t)task * model->route_width,
        model->route_width * sizeof(float));
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_route_of_vector(tmoe_model *model, const float *vector, float *route)
{
    tmoei_begin(model->ctx);
    if (model->R == 0 || !tmoei_selection_has_router(model->config.selection))
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "route_of_vector: the model has no router");
    return tmoei_routes_of_vectors(model, vector, 1, route);
}

/* ---- routes of unseen tasks ---- */

TMOE_DEF int tmoe_model_nearest_tasks(tmoe_model *model, const char *instruction, int count,
    int *tasks, float *cosines)
{
    const int k = model->config.vector_width;
    int filled = 0;
    for (int place = 0; place < count; place++) {
        tasks[place] = -1;
        cosines[place] = -2.0f;
    }
    if (count < 1 || !instruction) return 0;

    tmoei_text_vector(&model->config, instruction, model->asked_vector);
    for (int t = 0; t < model->N; t++) {
        const float *known = model->text_vectors + (size_t)t * (size_t)k;
        const float cosine = tmoei_cosine(model->asked_vector, known, k);
        if (filled == count && cosine <= cosines[count - 1]) continue;
        if (filled < count) filled++;
        int place = filled - 1; /* moves up to behind the last that is at least as near */
        while (place > 0 && cosines[place - 1] < cosine) {
            tasks[place] = tasks[place - 1];
            cosines[place] = cosines[place - 1];
            place--;
        }
        tasks[place] = t;
        cosines[place] = cosine;
    }
    return filled;
}

TMOE_DEF tmoe_result tmoe_vector_unseen(tmoe_model *model, const char *instruction, float *vector)
{
    tmoei_begin(model->ctx);
    if (!instruction)
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT, "vector_unseen: the instruction is NULL");
    tmoei_text_vector(&model->config, instruction, model->asked_vector);
    tmoei_vector_unseen(model, model->asked_vector, vector);
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_route_unseen(tmoe_model *model, const char *instruction,
    tmoe_zero_shot how, float *route)
{
    const int E = model->config.experts;
    tmoei_begin(model->ctx);
    if ((int)how < 0 || (int)how > (int)TMOE_ZERO_SHOT_AVERAGE || !instruction)
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "route_unseen: how is %d, must be a tmoe_zero_shot, or the instruction is NULL",
            (int)how);

    if (how == TMOE_ZERO_SHOT_AVERAGE || !tmoei_selection_has_router(model->config.selection)) {
        memset(route, 0, model->route_width * sizeof(float)); /* becomes even */
        for (int l = 0; l < model->R; l++) tmoei_route_mask(route + l * E, model->mask + l * E, E);
        return TMOE_OK;
    }
    if (model->R == 0) return TMOE_OK;
    tmoei_text_vector(&model->config, instruction, model->asked_vector);
    if (how == TMOE_ZERO_SHOT_ROUTER && model->config.vectors == TMOE_VECTOR_TEXT)
        return tmoei_routes_of_vectors(model, model->asked_vector, 1, route);
    TMOEI_TRY(tmoei_routes_refresh(model));
    tmoei_nearest_mean(model, model->asked_vector, model->routes, model->route_width, route);
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_expert_set_enabled(tmoe_model *model, int layer, int expert, int enabled)
{
    const int E = model->config.experts;
    tmoei_begin(model->ctx);
    const int exists = layer >= 0 && layer < model->R && expert >= 0 && expert < E;
    int others = 0; /* that are enabled */
    for (int e = 0; exists && e < E; e++)
        others += e != expert && model->mask[layer * E + e] == 0.0f;
    if (!exists || (!enabled && others == 0))
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "expert_set_enabled: expert %d of layer %d; there are %d in each of %d routed layers, "
            "and one must stay enabled",
            expert, layer, E, model->R);
    model->mask[layer * E + expert] = enabled ? 0.0f : -(float)INFINITY;
    model->version++;
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_task_vector_set(tmoe_model *model, int task, const float *vector)
{
    const size_t k = (size_t)model->config.vector_width;
    tmoei_begin(model->ctx);
    if (task < 0 || task >= model->N || !model->has_vectors || !vector)
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "task_vector_set: task %d of %d; its vector is NULL, or nothing reads vectors", task,
            model->N);
    memcpy(model->theta + model->vectors + (size_t)task * k, vector, k * sizeof(float));
    model->version++;
    return TMOE_OK;
}

/* ---- route once, merge once ---- */

static size_t tmoei_merged_floats(const tmoe_model *model)
{
    size_t n = 0;
    for (int l = 0; l < model->L; l++)
        if (model->layers[l].experts > 1) n += model->layers[l].block_size;
    return n;
}

/* Makes model->blocks hold theta_bar = sum_e r_e theta_e of each routed layer, until the route or
 * the parameters change. */
static tmoe_result tmoei_merge_route(tmoe_model *model, const float *route)
{
    const int E = model->config.experts;
    const size_t bytes = model->route_width * sizeof(float);
    if (model->tape->dry) {
        for (int l = 0; l < model->L; l++) /* any address */
            if (!model->blocks[l]) model->blocks[l] = model->theta + model->layers[l].block;
        return TMOE_OK;
    }
    if (model->merged_version == model->version && memcmp(model->merged_route, route, bytes) == 0)
        return TMOE_OK;
    if (!model->merged) { /* the first route */
        const size_t n = tmoei_merged_floats(model);
        model->merged = (float *)tmoei_own(&model->own, n, sizeof(float));
        if (!model->merged) return TMOE_ERR_MEMORY;
    }

    float *at = model->merged;
    for (int l = 0; l < model->L; l++) {
        const tmoei_layer *layer = &model->layers[l];
        if (layer->experts == 1) continue;
        const float *r = route + layer->route * E;
        float *experts = model->theta + layer->block;
        const int chosen = tmoei_one_hot(r, E);
        if (chosen >= 0) {
            model->blocks[l] = experts + (size_t)chosen * layer->block_size;
        } else {
            tmoei_merge_job job = tmoei_merge_job_of(experts, E, layer->block_size, r, 0, 1);
            job.merged = at;
            tmoei_merge(model->ctx, &job);
            model->blocks[l] = at;
        }
        at += layer->block_size;
    }
    memcpy(model->merged_route, route, bytes);
    model->merged_version = model->version;
    return TMOE_OK;
}

/* What tells a pass its task. */
typedef struct tmoei_guide {
    int task;            /* index of a known task, or -1 where what is needed below is given */
    const float *route;  /* (R, E); NULL: the known task's */
    const float *vector; /* (k); NULL: the known task's */
} tmoei_guide;

static tmoei_guide tmoei_guide_of(int task)
{
    const tmoei_guide guide = { task, NULL, NULL };
    return guide;
}

/* A row of n numbers, copied. */
static tmoe_tensor *tmoei_constant(tmoe_tape *tape, const float *x, size_t n)
{
    tmoe_tensor *row = tmoei_tensor_new(tape, 1, (int)n, NULL);
    if (row && !tape->dry) memcpy(row->x, x, n * sizeof(float));
    return row;
}

/* Sets up a pass that evaluates, without gradients. */
static tmoe_result tmoei_evaluation_pass(tmoe_model *model, const tmoei_guide *guide,
    tmoe_tape *tape, tmoei_pass *pass)
{
    const int routed = model->R > 0, merges = routed && model->config.mix == TMOE_MIX_PARAM;
    const float *route = guide->route;
    if (routed && !route) { /* this may use the tape, so it comes first */
        TMOEI_TRY(tmoei_routes_refresh(model));
        route = model->routes + (size_t)guide->task * model->route_width;
    }
    if (merges) TMOEI_TRY(tmoei_merge_route(model, route));

    tmoe_tape_reset(tape);
    tmoe_tape_record(tape, 0);
    memset(pass, 0, sizeof *pass);
    pass->model = model;
    pass->tape = tape;
    if (merges)
        pass->blocks = model->blocks;
    else if (routed)
        pass->route = tmoei_constant(tape, route, model->route_width);
    if (model->config.task_input & TMOE_TASK_VECTOR) {
        const size_t k = (size_t)model->config.vector_width;
        const float *vector = guide->vector;
        if (!vector) vector = model->theta + model->vectors + (size_t)guide->task * k;
        pass->vector = tmoei_constant(tape, vector, k);
    }
    return model->ctx->error;
}

/* ==== >>batches: texts become tokens, and tokens the groups of a step ============================
 * A group's sequences lie one behind the other, without padding: it costs what its tokens cost. */

typedef struct tmoei_batch { /* one group; all arrays are in one block of memory */
    tmoei_pack source;
    tmoei_pack target;
    int *labels; /* (target tokens) what the model must say at each position */
    int *memory;
    size_t capacity; /* ints in memory */
} tmoei_batch;

/* Makes room for a group of so many tokens and sequences, and empties the batch. */
static tmoe_result tmoei_batch_reserve(tmoe_ctx *ctx, tmoei_batch *batch, size_t sources,
    size_t targets, size_t sequences)
{
    const size_t need = 2 * sources + 3 * targets + 2 * (sequences + 1);
    tmoei_pack *source = &batch->source, *target = &batch->target;
    if (!tmoei_grow(ctx, &batch->memory, &batch->capacity, need, sizeof(int)))
        return TMOE_ERR_MEMORY;
    source->ids = batch->memory;
    source->positions = source->ids + sources;
    target->ids = source->positions + sources;
    target->positions = target->ids + targets;
    batch->labels = target->positions + targets;
    source->offsets = batch->labels + targets;
    target->offsets = source->offsets + sequences + 1;

    source->sequences = source->tokens = source->offsets[0] = 0;
    target->sequences = target->tokens = target->offsets[0] = 0;
    return TMOE_OK;
}

/* Appends a pair. The encoder reads x_1 ... x_nx. The decoder reads start, y_1 ... y_(ny-1) and
 * must say y_1 ... y_ny (teacher forcing). */
static void tmoei_batch_put(tmoei_batch *batch, const int *x, size_t nx, const int *y, size_t ny,
    int start)
{
    tmoei_pack *source = &batch->source, *target = &batch->target;

    for (size_t i = 0; i < nx; i++) {
        source->positions[source->tokens] = (int)i;
        source->ids[source->tokens++] = x[i];
    }
    source->offsets[++source->sequences] = source->tokens;

    for (size_t i = 0; i < ny; i++) {
        target->positions[target->tokens] = (int)i;
        batch->labels[target->tokens] = y[i];
        target->ids[target->tokens++] = i == 0 ? start : y[i - 1];
    }
    target->offsets[++target->sequences] = target->tokens;
}

/* A list of tokenised texts: text i is ids[offsets[i]] ... ids[offsets[i + 1] - 1]. */
typedef struct tmoei_texts {
    int *ids;
    size_t *offsets; /* (count + 1) */
    size_t count, ids_used, ids_capacity, offsets_capacity;
} tmoei_texts;

static void tmoei_texts_free(tmoe_ctx *ctx, tmoei_texts *texts)
{
    tmoei_free(ctx, texts->ids);
    tmoei_free(ctx, texts->offsets);
}

/* Tokenises what the encoder reads: <s> instruction \n input </s>, or without an instruction <s>
 * input </s>. count: tokens of the whole text, even past capacity. find: special tokens in it
 * count as such. */
static tmoe_result tmoei_encode_source(const tmoe_tokenizer *tokenizer, const char *instruction,
    const char *input, int find, int *ids, size_t capacity, size_t *count)
{
    const int flags = TMOE_TOKENIZER_SPECIALS | (find ? TMOE_TOKENIZER_FIND_SPECIALS : 0);
    const size_t before = instruction && instruction[0] ? strlen(instruction) + 1 : 0;
    const size_t length = strlen(input);
    char *text = (char *)tmoei_alloc(tokenizer->ctx, before + length + 1, 1, 0);
    if (!text) return TMOE_ERR_MEMORY;

    if (before) {
        memcpy(text, instruction, before - 1);
        text[before - 1] = '\n';
    }
    memcpy(text + before, input, length + 1);

    const tmoe_result result =
        tokenizer->encode(tokenizer, text, before + length, flags, ids, capacity, count);
    tmoei_free(tokenizer->ctx, text);
    return result;
}

/* Appends one tokenised text of at most `limit` tokens. The message of a failure names task, line
 * and `what` the text is. */
static tmoe_result tmoei_texts_add(const tmoe_model *model, tmoei_texts *texts,
    const char *instruction, const char *input, int limit, const char *what, const char *task,
    int line)
{
    tmoe_ctx *ctx = model->ctx;
    const size_t most = texts->ids_used + (size_t)limit;
    size_t n = 0;
    if (!input)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "task %s, line %d: the %s is NULL", task,
            line + 1, what);
    if (!tmoei_grow(ctx, &texts->ids, &texts->ids_capacity, most, sizeof *texts->ids)
        || !tmoei_grow(ctx, &texts->offsets, &texts->offsets_capacity, texts->count + 2,
            sizeof *texts->offsets))
        return TMOE_ERR_MEMORY;

    int *ids = texts->ids + texts->ids_used;
    TMOEI_TRY(tmoei_encode_source(model->tokenizer, instruction, input,
        model->config.specials_in_text, ids, (size_t)limit, &n));
    if (n > (size_t)limit)
        return tmoei_fail(ctx, TMOE_ERR_DATA,
            "task %s, line %d: the %s has %lu tokens; the model takes at most %d", task, line + 1,
            what, (unsigned long)n, limit);
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= model->V)
            return tmoei_fail(ctx, TMOE_ERR_DATA,
                "task %s, line %d: the %s has token %d; the model has %d", task, line + 1, what,
                ids[i], model->V);

    if (texts->count == 0) texts->offsets[0] = 0;
    texts->ids_used += n;
    texts->count++;
    texts->offsets[texts->count] = texts->ids_used;
    return TMOE_OK;
}

static size_t tmoei_text_length(const tmoei_texts *texts, size_t text)
{
    return texts->offsets[text + 1] - texts->offsets[text];
}

/* Target positions of a tokenised text <s> y_1 ... y_n </s>. The <s> counts only where the model's
 * targets begin with it. */
static size_t tmoei_target_length(const tmoe_model *model, const tmoei_texts *texts, size_t text)
{
    const size_t length = tmoei_text_length(texts, text);
    return model->config.begin_in_target ? length : length - 1;
}

/* ==== >>training: packed groups of tasks, AdamW and Muon, the loop ===============================
 * A step's batch is K groups, each of one task. The step runs in this order:
 *
 *   1. the tasks and their lines are dealt, both in epochs;
 *   2. the router runs forward for the K tasks, on a tape of its own;
 *   3. on that tape, with PARAM mix, the experts are merged for the K tasks;
 *   4. each group runs forward and backward on the other tape, and leaves its row of dl/droute, or
 *      the gradient of its merged layers;
 *   5. the router's tape runs backward from these;
 *   6. the optimiser moves the parameters. */

/* A training task: the lines it is trained on, then those of its validation, are a run of the
 * trainer's list of examples. */
typedef struct tmoei_trained_task {
    int task; /* index in the model */
    size_t first;
    int count;
    int validation;
} tmoei_trained_task;

typedef struct tmoei_trained_example {
    size_t source; /* the input, as an index of texts; its accepted outputs follow there */
    int targets;   /* number of accepted outputs */
} tmoei_trained_example;

/* A piece of one tensor, the unit of work of the optimiser: some floats that AdamW moves, or a
 * whole matrix that Muon moves. */
typedef struct tmoei_update {
    const tmoei_parameter *of;
    size_t offset; /* in theta */
    size_t count;
    size_t second;  /* AdamW: in moment2 */
    int rows, cols; /* Muon; 0 rows: AdamW */
    double norm;    /* squared, of the gradient */
} tmoei_update;

#define TMOEI_UPDATE_FLOATS 16384 /* theta, gradient and moments of a piece: 256 KiB, within L2 */

/* The most that a group of lines can have: what its memory depends on. */
typedef struct tmoei_extent {
    size_t sequences;
    size_t sources; /* tokens that the encoder reads */
    size_t targets; /* positions that the decoder computes */
} tmoei_extent;

struct tmoe_trainer {
    tmoe_ctx *ctx;
    tmoei_owner own; /* of the arrays below that have a size in their comment */

    /* What is trained. */
    tmoe_model *model;
    tmoe_training training;
    size_t first; /* theta[first] ... theta[first + span - 1] holds all that is trained */
    size_t span;

    /* The data. */
    tmoei_texts texts;
    tmoei_trained_task *tasks;
    int task_count;
    tmoei_trained_example *examples;
    size_t example_count;

    /* A step's draws. */
    int *task_order;    /* (tasks) an epoch's shuffle */
    int *example_order; /* (examples) a shuffle of one task's lines */
    int *step_tasks;    /* (K) indices in the model */
    int *counts;        /* (K) lines of each task */
    int *chosen;        /* (K, examples_per_task) indices of examples */
    double targets;     /* target positions of all groups; the loss is the mean over them */
    float *noise;       /* (K, R * E) Gumbel noise on the logits */

    /* A step's computation. */
    tmoe_tape *router_tape;
    tmoe_tape *group_tape;
    tmoei_batch batch;
    tmoe_tensor **mixed; /* (L) PARAM mix by a trained router: the layer merged for the K tasks */
    float *droutes;      /* (K, R * E) dl/droute */
    float *entropy;      /* (R) mean of the routes' entropy */
    float *use;          /* (R, E) mean of the routes */

    /* The optimiser. */
    tmoei_update *updates;
    int update_count;
    size_t update_capacity;
    float *grads;   /* (span) */
    float *moment1; /* (span) */
    float *moment2; /* (span2) without the matrices that Muon moves */
    float *best;    /* (span) parameters of the best validation, or NULL */
    size_t span2;
    float *polar_scratch; /* (lanes, polar_floats): Muon's */
    size_t polar_floats;
    int now;                      /* TMOE_TRAIN_ bits of what moves in this step */
    int64_t moved;                /* steps that this has moved in, from 1: corrects the moments */
    float rates[TMOEI_RATE_NONE]; /* learning rates of this step */
    float matrix_rate;            /* Muon's */
    float scale;                  /* of the gradient: clipping, and the mean over machines */

    /* Progress. */
    int64_t steps_done; /* of this training; model->step counts over several trainings */
    int64_t first_step; /* steps_done when this process began; tokens per second count from there */
    float best_loss;    /* NaN: nothing is measured yet */
    int64_t best_step;  /* model->step then, which sets the temperature */
    int bad_evaluations;
    double began; /* seconds of the clock; 0: not yet */
    double tokens;

    /* The plan of memory. */
    tmoei_extent group; /* the largest of training */
    tmoei_extent validation;
    size_t step_bytes; /* of tapes, batch and what a validation takes */
};

static double tmoei_seconds(void)
{
#if defined(TMOEI_POSIX)
    struct timeval now;
    (void)gettimeofday(&now, NULL);
    return (double)now.tv_sec + 1e-6 * (double)now.tv_usec;
#else
    return (double)clock() / CLOCKS_PER_SEC; /* wall time in Windows' C library */
#endif
}

#define TMOEI_STRUCT tmoe_training
static const tmoei_field tmoei_training_fields[] = { TMOEI_INT(vocabulary, 0, TMOEI_TOKENS_MAX),
    TMOEI_INT(steps, 1, INT_MAX), TMOEI_INT(evaluate_every_steps, 0, INT_MAX),
    TMOEI_INT(patience, 0, INT_MAX), TMOEI_INT(tasks_per_step, 1, TMOEI_GROUPS_MAX),
    TMOEI_INT(examples_per_task, 0, TMOEI_EXAMPLES_MAX), TMOEI_FLOAT(lr_model, 0, FLT_MAX),
    TMOEI_FLOAT(lr_router, 0, FLT_MAX), TMOEI_FLOAT(lr_tasks, 0, FLT_MAX),
    TMOEI_FLOAT(warmup, 0, 1), TMOEI_FLOAT(weight_decay, 0, FLT_MAX),
    TMOEI_FLOAT(beta1, 0, TMOEI_BELOW_1), TMOEI_FLOAT(beta2, 0, TMOEI_BELOW_1),
    TMOEI_FLOAT(adam_epsilon, FLT_MIN, FLT_MAX), TMOEI_FLOAT(clip, 0, FLT_MAX),
    TMOEI_FLOAT(label_smoothing, 0, TMOEI_BELOW_1), TMOEI_FLOAT(dropout, 0, TMOEI_BELOW_1),
    TMOEI_FLOAT(expert_regularisation, 0, FLT_MAX), TMOEI_FLOAT(load_balance, 0, FLT_MAX),
    TMOEI_ENUM(train, 1, TMOE_TRAIN_ALL, "|layers router tasks shared"),
    TMOEI_INT(alternate_steps, 0, INT_MAX / 2), TMOEI_INT(validation_lines, 0, INT_MAX),
    TMOEI_INT(machines, 0, INT_MAX),
    TMOEI_ENUM(optimiser, TMOE_OPTIMISER_ADAMW, TMOE_OPTIMISER_MUON, "adamw muon"),
    TMOEI_FLOAT(lr_matrices, 0, FLT_MAX), TMOEI_FLOAT(momentum, 0, TMOEI_BELOW_1),
    TMOEI_FLOAT(matrix_decay, 0, FLT_MAX), TMOEI_INT(matrix_turns, 0, 1),
    TMOEI_FLOAT(router_dropout, 0, TMOEI_BELOW_1) };

enum {
    TMOEI_TRAINING_FIELDS = sizeof tmoei_training_fields / sizeof *tmoei_training_fields,
    TMOEI_FREE_FIELDS = 4,  /* the first: they change no step */
    TMOEI_LATER_FIELDS = 6, /* the last; before 0.3 (router_dropout: 0.4) checkpoints lack them */
    TMOEI_MATRIX_FIELDS = 4 /* of these, behind the optimiser: what only Muon reads */
};

#undef TMOEI_STRUCT

TMOE_DEF tmoe_training tmoe_training_default(void)
{
    tmoe_training t;
    memset(&t, 0, sizeof t);
    t.steps = 2500;
    t.tasks_per_step = 32; /* many tasks, few lines: the table in the README says why */
    t.lr_model = 3e-3f;
    t.lr_router = 5e-3f;
    t.lr_tasks = 1e-2f;
    t.warmup = 0.06f;
    t.weight_decay = 0.01f;
    t.adam_epsilon = 1e-8f; /* the paper's */
    t.beta1 = 0.9f;
    t.beta2 = 0.999f;
    t.clip = 1.0f;
    t.optimiser = TMOE_OPTIMISER_MUON;
    t.lr_matrices = 1e-2f;
    t.momentum = 0.95f; /* Jordan's */
    t.matrix_decay = 0.1f;
    t.matrix_turns = 1;
    t.train = TMOE_TRAIN_ALL;
    t.vocabulary = 0; /* bytes */
    t.seed = 1;
    return t;
}

/* The text that line c of a group is trained on: `random` picks one of the accepted outputs. */
static size_t tmoei_accepted(const tmoei_trained_example *example, int c, uint64_t random)
{
    const uint64_t pick = tmoei_mix64(random + (uint64_t)c);
    return example->source + 1 + tmoei_below(pick, (size_t)example->targets);
}

/* Puts `count` examples (indices of trainer->examples) into the batch. */
static tmoe_result tmoei_batch_fill(tmoe_trainer *trainer, const int *chosen, int count,
    uint64_t random)
{
    const tmoe_model *model = trainer->model;
    const tmoei_texts *texts = &trainer->texts;
    size_t sources = 0, targets = 0;
    for (int i = 0; i < count; i++) {
        const tmoei_trained_example *example = &trainer->examples[chosen[i]];
        sources += tmoei_text_length(texts, example->source);
        targets += tmoei_target_length(model, texts, tmoei_accepted(example, i, random));
    }
    TMOEI_TRY(tmoei_batch_reserve(trainer->ctx, &trainer->batch, sources, targets, (size_t)count));

    for (int i = 0; i < count; i++) {
        const tmoei_trained_example *example = &trainer->examples[chosen[i]];
        const size_t x = example->source, y = tmoei_accepted(example, i, random);
        const size_t length = tmoei_target_length(model, texts, y);
        tmoei_batch_put(&trainer->batch, texts->ids + texts->offsets[x],
            tmoei_text_length(texts, x), texts->ids + texts->offsets[y + 1] - length, length,
            model->config.start_id);
    }
    return TMOE_OK;
}

/* weight times the sum of the batch's losses; the pass says what gets gradients. */
static tmoe_tensor *tmoei_group_loss(tmoe_trainer *trainer, tmoei_pass *pass, float smoothing,
    float weight)
{
    const tmoei_batch *b = &trainer->batch;
    tmoe_tensor *h = tmoei_decode(pass, &b->target, tmoei_encode(pass, &b->source), &b->source);
    return tmoe_cross_entropy(pass->tape, tmoei_head(pass, h), b->labels, smoothing, weight);
}

/* ---- the optimiser ----
 * Only tmoei_adamw and tmoei_muon know the update rules. */

/* lr(s) = top (s + 1) / warmup                       while s + 1 < warmup
 *       = top (steps - s) / (steps - warmup + 1)     after that */
static float tmoei_learning_rate(const tmoe_training *t, int64_t step, float top)
{
    const double steps = (double)t->steps;
    const double warmup = (double)t->warmup * steps;
    const double at = (double)step;
    double factor = (steps - at) / (steps - warmup + 1.0);

    if (at + 1.0 < warmup) factor = (at + 1.0) / warmup;
    if (factor < 0.0) factor = 0.0;
    return (float)((double)top * factor);
}

/* Returns whether the TMOE_TRAIN_ bits train the parameters of this rate. tmoei_rate has the order
 * of the bits; TMOEI_RATE_NONE is past them. */
static int tmoei_moves(int bits, tmoei_rate rate)
{
    return bits >> (int)rate & 1;
}

/* Sets what moves in the coming step, and how often that has moved. With alternate_steps = a the
 * first a steps are the model's, the next a are the router's, and so on. */
static void tmoei_trainer_turn(tmoe_trainer *trainer)
{
    const int64_t done = trainer->steps_done;
    const int64_t turn = trainer->training.alternate_steps;

    trainer->now = trainer->training.train;
    trainer->moved = 1 + done;
    if (turn == 0) return;

    const int models = done / turn % 2 == 0;
    trainer->now &= models ? TMOE_TRAIN_MODEL : TMOE_TRAIN_ROUTER | TMOE_TRAIN_TASKS;
    trainer->moved = 1 + done / (2 * turn) * turn + done % turn;
}

static void tmoei_norm_chunk(void *arg, int chunk, int lane)
{
    tmoe_trainer *trainer = (tmoe_trainer *)arg;
    tmoei_update *update = &trainer->updates[chunk];
    const float *grad = trainer->grads + (update->offset - trainer->first);
    (void)lane;

    update->norm = 0.0;
    if (tmoei_moves(trainer->now, update->of->rate))
        update->norm = tmoei_dot(trainer->ctx, grad, grad, update->count, 1024);
}

/* AdamW (Loshchilov 2019) on one piece:
 *   m = beta1 m + (1 - beta1) g
 *   v = beta2 v + (1 - beta2) g^2
 *   theta -= lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + decay theta) */
static tmoei_adamw_constants tmoei_adamw_at(const tmoe_training *t, int64_t moved, float rate)
{
    tmoei_adamw_constants constants;
    constants.scale = 1.0f;
    constants.beta1 = t->beta1;
    constants.beta2 = t->beta2;
    constants.correction1 = (float)(1.0 / (1.0 - pow((double)t->beta1, (double)moved)));
    constants.correction2 = (float)(1.0 / (1.0 - pow((double)t->beta2, (double)moved)));
    constants.epsilon = t->adam_epsilon;
    constants.rate = rate;
    constants.decay = rate * t->weight_decay;
    return constants;
}

static void tmoei_adamw(tmoe_trainer *trainer, const tmoei_update *update)
{
    const size_t at = update->offset - trainer->first;
    const float rate = trainer->rates[update->of->rate];
    tmoei_adamw_constants constants = tmoei_adamw_at(&trainer->training, trainer->moved, rate);
    constants.scale = trainer->scale;
    if (!update->of->decay) constants.decay = 0.0f;
    trainer->ctx->kernels->adamw(trainer->model->theta + update->offset, trainer->grads + at,
        trainer->moment1 + at, trainer->moment2 + update->second, update->count, &constants);
}

typedef struct tmoei_adamw_job {
    const tmoe_trained *what;
    tmoei_adamw_constants constants;
} tmoei_adamw_job;

static void tmoei_adamw_sweep(const tmoe_ctx *ctx, const void *job, size_t at, size_t n)
{
    const tmoei_adamw_job *j = (const tmoei_adamw_job *)job;
    const tmoe_trained *what = j->what;
    ctx->kernels->adamw(what->values + at, what->gradients + at, what->moment1 + at,
        what->moment2 + at, n, &j->constants);
    memset(what->gradients + at, 0, n * sizeof(float));
}

TMOE_DEF tmoe_result tmoe_adamw(tmoe_ctx *ctx, const tmoe_training *how, float rate, int64_t step,
    const tmoe_trained *what)
{
    const tmoe_training usual = tmoe_training_default();
    tmoei_begin(ctx);
    if (!how) how = &usual;
    if (step < 1 || !(rate >= 0.0f && rate < FLT_MAX) || !what
        || (what->count > 0
            && (!what->values || !what->gradients || !what->moment1 || !what->moment2)))
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "adamw: step %ld, rate %g; they must be at least 1 and 0, and nothing NULL", (long)step,
            (double)rate);
    const double squares =
        tmoei_dot(ctx, what->gradients, what->gradients, what->count, TMOEI_SWEEP);
    if (!(squares < (double)FLT_MAX))
        return tmoei_fail(ctx, TMOE_ERR_NUMERIC,
            "adamw: step %ld: a gradient is not finite, or its square is not", (long)step);
    const tmoei_adamw_job job = { what, tmoei_adamw_at(how, step, rate) };
    tmoei_sweep(ctx, what->count, TMOEI_SWEEP, tmoei_adamw_sweep, &job);
    return TMOE_OK;
}

/* m = mu m + (1 - mu) g, and for a matrix that moves u = mu m + (1 - mu) g (Nesterov) in place of
 * the gradient */
static void tmoei_momentum(tmoe_trainer *trainer, const tmoei_update *update, int moves)
{
    const size_t first = update->offset - trainer->first;
    const float mu = trainer->training.momentum, part = (1.0f - mu) * trainer->scale;
    for (size_t at = first; at < first + update->count; at += TMOEI_SWEEP) {
        const size_t n = tmoei_least_size(first + update->count - at, TMOEI_SWEEP);
        float *m = trainer->moment1 + at, *g = trainer->grads + at;
        trainer->ctx->kernels->scale_add(m, mu, part, g, n);
        if (moves) trainer->ctx->kernels->scale_add(g, part, mu, m, n);
    }
}

/* Muon (Jordan 2024) on one matrix, with u of tmoei_momentum:
 *   theta -= lr sqrt(max(1, rows / columns)) polar(u) + lr decay theta
 * With matrix_turns only one of the E experts moves, by E times this; so a step's cost does not
 * grow with E. Without a gradient nothing changes. */
static void tmoei_muon(tmoe_trainer *trainer, const tmoei_update *update, int lane)
{
    const tmoe_training *t = &trainer->training;
    const int expert = update->of->expert, turns = t->matrix_turns && expert >= 0;
    const int E = turns ? trainer->model->config.experts : 1;
    const int moves = !turns || (trainer->moved - 1) % E == expert;
    if (update->norm == 0.0) return;
    tmoei_momentum(trainer, update, moves);
    if (!moves) return;

    const float rate = (float)E * trainer->matrix_rate;
    const float high = (float)update->rows / (float)update->cols;
    tmoei_polar polar;
    polar.theta = trainer->model->theta + update->offset;
    polar.x = trainer->grads + (update->offset - trainer->first);
    polar.rows = update->rows;
    polar.cols = update->cols;
    polar.step = high > 1.0f ? -rate * sqrtf(high) : -rate;
    polar.keep = 1.0f - rate * t->matrix_decay;
    polar.scratch = trainer->polar_scratch + (size_t)lane * trainer->polar_floats;
    tmoei_polar_add(trainer->ctx, lane, &polar);
}

/* The gradient is cleared while it is in the cache. What does not move keeps its moments. */
static void tmoei_update_chunk(void *arg, int chunk, int lane)
{
    tmoe_trainer *trainer = (tmoe_trainer *)arg;
    const tmoei_update *update = &trainer->updates[chunk];
    float *grad = trainer->grads + (update->offset - trainer->first);
    if (!tmoei_moves(trainer->now, update->of->rate)) return;

    if (update->rows > 0)
        tmoei_muon(trainer, update, lane);
    else
        tmoei_adamw(trainer, update);
    memset(grad, 0, update->count * sizeof(float));
}

/* g = the mean gradient over the machines, scaled down to the norm training.clip; moves the
 * parameters. Out: the norm before that. */
static tmoe_result tmoei_optimise(tmoe_trainer *trainer, double loss, double *norm)
{
    const tmoe_training *t = &trainer->training;
    const double machines = t->machines > 1 ? (double)t->machines : 1.0;
    const float tops[TMOEI_RATE_NONE] = { t->lr_model, t->lr_router, t->lr_tasks, t->lr_model };
    double squares = 0.0, clipped = 1.0;

    if (t->all_reduce) t->all_reduce(t->all_reduce_user, trainer->grads, trainer->span);
    tmoei_parallel(trainer->ctx, tmoei_norm_chunk, trainer, trainer->update_count);
    for (int i = 0; i < trainer->update_count; i++) squares += trainer->updates[i].norm;
    *norm = sqrt(squares) / machines;
    if (!(*norm < (double)FLT_MAX) || !(loss < (double)FLT_MAX)) /* NaN is not below, either */
        return tmoei_fail(trainer->ctx, TMOE_ERR_NUMERIC,
            "trainer_step: step %ld: loss %g, gradient norm %g; both must be finite "
            "(a smaller learning rate may help)",
            (long)trainer->steps_done, loss, *norm);

    if (t->clip > 0.0f && *norm > (double)t->clip) clipped = (double)t->clip / *norm;
    trainer->scale = (float)(clipped / machines);
    for (int i = 0; i < TMOEI_RATE_NONE; i++)
        trainer->rates[i] = tmoei_learning_rate(t, trainer->steps_done, tops[i]);
    trainer->matrix_rate = tmoei_learning_rate(t, trainer->steps_done, t->lr_matrices);
    tmoei_parallel(trainer->ctx, tmoei_update_chunk, trainer, trainer->update_count);
    return TMOE_OK;
}

/* ---- one step: the routes ---- */

/* With a chance of config.exploration the route of a layer and group is replaced by a random
 * expert or the uniform route: r' = r keep + other, keep 0 or 1. A replaced route gives the router
 * no gradient. */
static tmoe_tensor *tmoei_explore(tmoe_trainer *trainer, int rows, tmoe_tensor *r)
{
    tmoe_tape *tape = trainer->router_tape;
    const tmoe_model *model = trainer->model;
    const int E = model->config.experts, filled = tape->dry ? 0 : rows;
    const uint64_t seed = trainer->training.seed;
    const uint64_t first = (uint64_t)trainer->steps_done * (uint64_t)rows;
    if (!(model->config.exploration > 0.0f) || !r) return r;

    tmoe_tensor *keep = tmoei_tensor_new(tape, rows, E, NULL);
    tmoe_tensor *other = tmoei_tensor_new(tape, rows, E, NULL);
    if (!keep || !other) return NULL;
    for (int i = 0; i < filled; i++) {
        const uint64_t at = (first + (uint64_t)i) * 2;
        const float chance = tmoei_uniform(tmoei_random(seed, TMOEI_STREAM_EXPLORE, at));
        const uint64_t which = tmoei_random(seed, TMOEI_STREAM_EXPLORE, at + 1);
        const int explore = chance < model->config.exploration, one = which & 1;
        float *others = other->x + i * E;

        for (int e = 0; e < E; e++) {
            keep->x[i * E + e] = explore ? 0.0f : 1.0f;
            others[e] = explore && !one ? 1.0f / (float)E : 0.0f;
        }
        if (!explore) continue;
        if (one) others[tmoei_below(which >> 1, (size_t)E)] = 1.0f;
        tmoei_route_mask(others, model->mask + i % model->R * E, E);
    }
    return tmoe_add(tape, tmoe_multiply(tape, r, keep), other);
}

/* Lines that share a route and so run as one group: with RANDOM_EXAMPLE one, else all of a task. */
static int tmoei_sharing(const tmoe_trainer *trainer)
{
    const int single =
        trainer->model->R > 0 && trainer->model->config.selection == TMOE_SELECT_RANDOM_EXAMPLE;
    return single ? 1 : trainer->training.examples_per_task;
}

/* Routes of a selection that has no router: constants. */
static tmoe_tensor *tmoei_step_constant_routes(tmoe_trainer *trainer, int K)
{
    const tmoe_model *model = trainer->model;
    tmoe_tape *tape = trainer->router_tape;
    const int fixed = model->config.selection == TMOE_SELECT_RANDOM_TASK;
    const int rows = K * trainer->training.examples_per_task / tmoei_sharing(trainer);
    const uint64_t first = (uint64_t)trainer->steps_done * (uint64_t)rows;
    const uint64_t stream = fixed ? TMOEI_STREAM_TASK_ROUTES : TMOEI_STREAM_GROUP_ROUTES;
    tmoe_tensor *routes = tmoei_tensor_new(tape, rows, (int)model->route_width, NULL);
    if (!routes || tape->dry) return routes;

    for (int i = 0; i < rows; i++) {
        const uint64_t at = fixed ? (uint64_t)trainer->step_tasks[i] : first + (uint64_t)i;
        tmoei_route_without_router(model, stream, at, routes->x + i * routes->cols);
    }
    return routes;
}

/* Gradients of theta[offset] on, or NULL where this does not move in the step. */
static float *tmoei_step_grads(const tmoe_trainer *trainer, int bit, size_t offset)
{
    return trainer->now & bit ? trainer->grads + (offset - trainer->first) : NULL;
}

/* Gradients of the task vectors (N, k), or NULL where they do not move. */
static float *tmoei_step_dvectors(const tmoe_trainer *trainer)
{
    const tmoe_model *model = trainer->model;
    if (model->config.vectors != TMOE_VECTOR_LEARNED) return NULL;
    return tmoei_step_grads(trainer, TMOE_TRAIN_TASKS, model->vectors);
}

/* Routes (K, R * E) of the step's tasks on the router's tape, with the noise of training. */
static tmoe_tensor *tmoei_step_routes(tmoe_trainer *trainer, int K)
{
    tmoe_model *model = trainer->model;
    const tmoe_config *c = &model->config;
    const float *noise = c->selection == TMOE_SELECT_SOFTMAX ? NULL : trainer->noise;
    tmoe_tape *tape = trainer->router_tape;
    if (!tmoei_selection_has_router(c->selection)) return tmoei_step_constant_routes(trainer, K);

    /* The tasks' vectors: rows of the table. */
    tmoe_tensor *table = tmoe_leaf(tape, model->N, c->vector_width, model->theta + model->vectors,
        tmoei_step_dvectors(trainer));
    tmoe_tensor *e_t = tmoe_embedding(tape, table, K, trainer->step_tasks, 1.0f, NULL, NULL);
    e_t = tmoei_dropout(tape, e_t, trainer->training.router_dropout,
        (uint32_t)tmoei_random(trainer->training.seed, TMOEI_STREAM_ROUTER_DROPOUT,
            (uint64_t)trainer->steps_done));

    /* r = select(router(e_t)), a row for each task and layer */
    const size_t router = model->parameters[model->router_parameter].offset;
    float *drouter = tmoei_step_grads(trainer, TMOE_TRAIN_ROUTER, router);
    tmoe_tensor *z = tmoei_router_logits(model, tape, drouter, e_t);
    tmoe_tensor *r = tmoei_routes_of_logits(model, tape, z, noise);
    r = tmoei_explore(trainer, K * model->R, r);
    return tmoe_reshape(tape, r, K, (int)model->route_width);
}

/* For each routed layer the means over K routes: of their entropy -sum_e r_e ln r_e, and of r. */
static void tmoei_route_statistics(tmoe_trainer *trainer, const float *routes, int K)
{
    const int R = trainer->model->R;
    const int E = trainer->model->config.experts;
    memset(trainer->entropy, 0, (size_t)R * sizeof(float));
    memset(trainer->use, 0, (size_t)(R * E) * sizeof(float));

    for (int t = 0; t < K; t++)
        for (int l = 0; l < R; l++) {
            const float *r = routes + (t * R + l) * E;
            for (int e = 0; e < E; e++) {
                trainer->use[l * E + e] += r[e] / (float)K;
                if (r[e] > 0.0f) trainer->entropy[l] -= r[e] * logf(r[e]) / (float)K;
            }
        }
}

/* The balance of the experts' load over tasks, with its weight b = training.load_balance:
 *   b E / R sum_l sum_e m_le^2,  m_le the mean of r_le over the step's tasks;  with a = b E / R
 *   dr_le = 2 a m_le / K
 * It is least, b, where all experts are used alike. Returns its value and adds to droutes. */
static double tmoei_load_balance(tmoe_trainer *trainer, int K)
{
    const float E = (float)trainer->model->config.experts, R = (float)trainer->model->R;
    const float a = trainer->training.load_balance * E / R, *m = trainer->use;
    const int width = (int)trainer->model->route_width;
    double value = 0.0;

    for (int t = 0; t < K; t++)
        for (int i = 0; i < width; i++)
            trainer->droutes[t * width + i] += 2.0f * a * m[i] / (float)K;
    for (int i = 0; i < width; i++) value += (double)(a * m[i] * m[i]);
    return value;
}

/* Returns whether the experts are merged for all tasks at once, on the router's tape: so each is
 * read once forward and once backward. Groups with one-hot routes run on the chosen expert, those
 * with constant routes merge for themselves. */
static int tmoei_step_mixes(const tmoe_model *model, const tmoe_tensor *routes)
{
    return routes && routes->wants_grad && model->config.mix == TMOE_MIX_PARAM
        && model->config.selection != TMOE_SELECT_STRAIGHT_THROUGH;
}

/* Merges each routed layer for all of the step's tasks. */
static void tmoei_step_mix(tmoe_trainer *trainer, tmoe_tensor *routes)
{
    const tmoe_model *model = trainer->model;
    if (!tmoei_step_mixes(model, routes)) return;

    for (int l = 0; l < model->L; l++) {
        const tmoei_layer *layer = &model->layers[l];
        if (layer->experts == 1) continue;
        float *grads = tmoei_step_grads(trainer, TMOE_TRAIN_LAYERS, layer->block);
        trainer->mixed[l] = tmoe_mix_parameters(trainer->router_tape, model->theta + layer->block,
            grads, layer->experts, (int)layer->block_size, routes, layer->route * layer->experts);
    }
}

/* Draws Gumbel's noise for n logits: -log(-log U); nothing for a selection that ignores it. */
static void tmoei_step_noise(tmoe_trainer *trainer, size_t n)
{
    const uint64_t seed = trainer->training.seed;
    const uint64_t first = (uint64_t)trainer->steps_done * (uint64_t)n;
    const tmoe_selection selection = trainer->model->config.selection;
    if (selection != TMOE_SELECT_GUMBEL && selection != TMOE_SELECT_STRAIGHT_THROUGH) return;
    for (size_t i = 0; i < n; i++) {
        const uint64_t random = tmoei_random(seed, TMOEI_STREAM_GUMBEL, first + (uint64_t)i);
        trainer->noise[i] = -logf(-logf(tmoei_uniform(random)));
    }
}

/* Routes of the step's K tasks and merged layers. *loss grows by the balance of the load. Returns
 * NULL where no layer is routed, or in failure. */
static tmoe_tensor *tmoei_step_route(tmoe_trainer *trainer, int K, double *loss)
{
    const size_t n = (size_t)K * trainer->model->route_width;
    tmoe_tape_reset(trainer->router_tape);
    if (n == 0) return NULL;
    tmoei_step_noise(trainer, n);
    tmoe_tensor *routes = tmoei_step_routes(trainer, K);
    if (!routes) return NULL;

    if (!trainer->router_tape->dry) tmoei_route_statistics(trainer, routes->x, routes->rows);
    if (routes->wants_grad) {
        memset(trainer->droutes, 0, n * sizeof(float)); /* each group adds to its row */
        routes->dx = trainer->droutes;
        routes->has_grad = 1;
        *loss += tmoei_load_balance(trainer, K);
    }
    tmoei_step_mix(trainer, routes);
    return routes;
}

/* d = ||x - y|| / pairs, of n floats. Adds weight dd/dx = weight (x - y) / (||x - y|| pairs) to dx
 * and takes it off dy. Returns d. */
static double tmoei_tensor_distance(const float *x, const float *y, size_t n, int pairs,
    float weight, float *dx, float *dy)
{
    double squares = 0.0;
    for (size_t j = 0; j < n; j++) squares += (double)(x[j] - y[j]) * (double)(x[j] - y[j]);
    const double distance = sqrt(squares);
    if (!(distance > 0.0)) return 0.0; /* equal experts: there is no direction */

    const float scale = weight / (float)(distance * pairs);
    for (size_t j = 0; j < n; j++) {
        const float d = scale * (x[j] - y[j]);
        dx[j] += d;
        dy[j] -= d;
    }
    return distance / pairs;
}

/* The mean over pairs (a, b) of layer l's experts of sum ||theta_a - theta_b||, over their
 * tensors; q, k and v are tensors of their own. Its gradient times `weight` is added to `grads`,
 * of expert 0 on. */
static double tmoei_expert_distance(const tmoe_model *model, int l, float *grads, float weight)
{
    const tmoei_layer *layer = &model->layers[l];
    const int E = layer->experts, pairs = E * (E - 1) / 2;
    const float *theta = model->theta + layer->block;
    double total = 0.0;

    for (int a = 0; a < E; a++)
        for (int b = a + 1; b < E; b++)
            for (int piece = 0; piece < TMOEI_PIECES; piece++) {
                if (!layer->in_expert[piece]) continue;
                int parts = 1;
                if (piece == TMOEI_SELF_QKV || piece == TMOEI_SELF_QKV_BIAS) parts = 3;
                if (piece == TMOEI_CROSS_KV || piece == TMOEI_CROSS_KV_BIAS) parts = 2;
                const size_t n =
                    (size_t)layer->rows[piece] * (size_t)layer->cols[piece] / (size_t)parts;
                for (int part = 0; part < parts; part++) {
                    const size_t offset = layer->offset[piece] + (size_t)part * n;
                    const size_t x = (size_t)a * layer->block_size + offset;
                    const size_t y = (size_t)b * layer->block_size + offset;
                    total += tmoei_tensor_distance(theta + x, theta + y, n, pairs, weight,
                        grads + x, grads + y);
                }
            }
    return total;
}

/* ---- one step: the groups ---- */

/* The random number that picks accepted outputs for the lines of a step's task g. */
static uint64_t tmoei_accepted_of(const tmoe_trainer *trainer, int g)
{
    return tmoei_random(trainer->training.seed, TMOEI_STREAM_ACCEPTED,
        tmoei_group_number(trainer->steps_done, g));
}

/* Deals the step's tasks and each one's lines, and counts their target positions. Returns K. Tasks
 * come in epochs: each once, in a new order, before any comes again. So in epoch e a task has had
 * its lines e times; these come in epochs, too. Where two epochs meet, a step may have a task
 * twice, and a group a line. */
static int tmoei_step_draw(tmoe_trainer *trainer)
{
    const tmoe_training *t = &trainer->training;
    const uint64_t N = (uint64_t)trainer->task_count;
    const int most = t->examples_per_task, K = tmoei_least(t->tasks_per_step, trainer->task_count);
    const uint64_t dealt = (uint64_t)trainer->steps_done * (uint64_t)K;
    int places[TMOEI_GROUPS_MAX];
    tmoei_deal(t->seed, TMOEI_STREAM_TASKS, dealt, trainer->task_order, (int)N, K, places);

    trainer->targets = 0.0;
    for (int g = 0; g < K; g++) {
        const tmoei_trained_task *task = &trainer->tasks[places[g]];
        const uint64_t epoch = (dealt + (uint64_t)g) / N;
        const uint64_t random = tmoei_accepted_of(trainer, g);
        const int count = tmoei_least(most, task->count);
        int *chosen = trainer->chosen + g * most;
        trainer->step_tasks[g] = task->task;
        trainer->counts[g] = count;
        tmoei_deal(t->seed, TMOEI_STREAM_LINES | (uint64_t)places[g], epoch * (uint64_t)count,
            trainer->example_order, task->count, count, chosen);
        for (int i = 0; i < count; i++) {
            chosen[i] += (int)task->first;
            const size_t text = tmoei_accepted(&trainer->examples[chosen[i]], i, random);
            trainer->targets += (double)tmoei_target_length(trainer->model, &trainer->texts, text);
        }
    }
    return K;
}

/* A task's vector as a leaf of the group's tape. */
static tmoe_tensor *tmoei_step_vector(const tmoe_trainer *trainer, int task)
{
    const tmoe_model *model = trainer->model;
    const int k = model->config.vector_width;
    const size_t at = (size_t)task * (size_t)k;
    float *dvectors = tmoei_step_dvectors(trainer);
    return tmoe_leaf(trainer->group_tape, 1, k, model->theta + model->vectors + at,
        dvectors ? dvectors + at : NULL);
}

/* Forward and backward of the group in trainer->batch, lines of the step's task `task`. It uses row
 * `row` of the routes, and adds weight times its loss to *loss. */
static void tmoei_step_group(tmoe_trainer *trainer, tmoe_tensor *routes, int task, int row,
    float weight, double *loss)
{
    const tmoe_training *t = &trainer->training;
    tmoe_model *model = trainer->model;
    const size_t at = (size_t)row * model->route_width;
    const int routed = routes && routes->wants_grad;
    tmoei_pass pass;

    tmoe_tape_reset(trainer->group_tape);
    memset(&pass, 0, sizeof pass);
    pass.model = model;
    pass.tape = trainer->group_tape;
    pass.grads = trainer->grads;
    pass.first = trainer->first;
    pass.train = trainer->now;
    pass.hard_training = routed && model->config.selection == TMOE_SELECT_STRAIGHT_THROUGH;
    pass.mixed = tmoei_step_mixes(model, routes) ? trainer->mixed : NULL;
    pass.group = row;
    pass.dropout = t->dropout;
    pass.dropout_seed = t->seed;
    pass.dropout_stream = TMOEI_STREAM_DROPOUT | tmoei_group_number(trainer->steps_done, row);
    if (model->config.task_input & TMOE_TASK_VECTOR)
        pass.vector = tmoei_step_vector(trainer, trainer->step_tasks[task]);
    if (routes)
        pass.route = tmoe_leaf(pass.tape, 1, (int)model->route_width, routes->x + at,
            routed ? routes->dx + at : NULL);

    tmoe_tensor *result = tmoei_group_loss(trainer, &pass, t->label_smoothing, weight);
    if (!result || tmoe_backward(pass.tape, result) != TMOE_OK) return;
    if (!pass.tape->dry) *loss += (double)result->x[0];
}

/* All groups of the step. */
static tmoe_result tmoei_step_groups(tmoe_trainer *trainer, tmoe_tensor *routes, int K,
    double *loss)
{
    const int most = trainer->training.examples_per_task;
    const int sharing = tmoei_sharing(trainer);
    const float weight = (float)(1.0 / trainer->targets);

    for (int g = 0; g < K; g++) {
        const uint64_t random = tmoei_accepted_of(trainer, g);
        for (int first = 0; first < trainer->counts[g]; first += sharing) {
            const int n = tmoei_least(sharing, trainer->counts[g] - first);
            const int *chosen = trainer->chosen + g * most + first;
            const int row = (g * most + first) / sharing;
            TMOEI_TRY(tmoei_batch_fill(trainer, chosen, n, random + (uint64_t)first));
            tmoei_step_group(trainer, routes, g, row, weight, loss);
            TMOEI_TRY(trainer->ctx->error);
            trainer->tokens += (double)trainer->batch.source.tokens;
            trainer->tokens += (double)trainer->batch.target.tokens;
        }
    }
    return TMOE_OK;
}

/* Draws the step's batch and leaves its gradients in trainer->grads. Returns the mean loss over the
 * step's target positions, plus what balance and regularisation add. */
static double tmoei_step_gradients(tmoe_trainer *trainer)
{
    const tmoe_model *model = trainer->model;
    const float weight = trainer->training.expert_regularisation;
    double loss = 0.0;
    const int K = tmoei_step_draw(trainer);
    tmoe_tensor *routes = tmoei_step_route(trainer, K, &loss);
    if (trainer->ctx->error != TMOE_OK) return 0.0;

    if (tmoei_step_groups(trainer, routes, K, &loss) != TMOE_OK) return 0.0;
    if (routes && routes->wants_grad && tmoei_tape_backward(trainer->router_tape) != TMOE_OK)
        return 0.0;
    if (!(weight > 0.0f) || !(trainer->now & TMOE_TRAIN_LAYERS)) return loss;
    for (int l = 0; l < model->L; l++) {
        float *grads = trainer->grads + (model->layers[l].block - trainer->first);
        loss += (double)weight * tmoei_expert_distance(model, l, grads, weight);
    }
    return loss;
}

static void tmoei_progress_fill(tmoe_trainer *trainer, double loss, double norm, tmoe_progress *p)
{
    const tmoe_training *t = &trainer->training;
    const double seconds = tmoei_seconds() - trainer->began;
    const double done = (double)(trainer->steps_done - trainer->first_step);
    const double left = (double)(t->steps - trainer->steps_done);

    p->trainer = trainer;
    p->label = t->label;
    p->step = trainer->steps_done;
    p->steps = t->steps;
    p->loss = (float)loss;
    p->gradient_norm = (float)norm;
    p->validation_loss = (float)NAN;
    p->best_validation_loss = trainer->best_loss;
    p->lr_model = trainer->rates[TMOEI_RATE_LAYERS];
    p->lr_router = trainer->rates[TMOEI_RATE_ROUTER];
    p->lr_tasks = trainer->rates[TMOEI_RATE_TASKS];
    p->temperature = tmoe_model_temperature(trainer->model);
    p->route_entropy = trainer->entropy;
    p->expert_use = trainer->use;
    p->routed_layers = trainer->model->R;
    p->seconds = seconds;
    p->tokens_per_second = seconds > 0.0 ? trainer->tokens / seconds : 0.0;
    p->seconds_left = seconds / done * left;
}

/* Moves the parameters by trainer->grads; then the step is done. */
static tmoe_result tmoei_trainer_apply(tmoe_trainer *trainer, double loss, tmoe_progress *progress)
{
    double norm = 0.0;
    TMOEI_TRY(tmoei_optimise(trainer, loss, &norm));
    trainer->model->version++;
    trainer->model->step++;
    trainer->steps_done++;
    if (progress) tmoei_progress_fill(trainer, loss, norm, progress);
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_trainer_step(tmoe_trainer *trainer, tmoe_progress *progress)
{
    tmoe_ctx *ctx = trainer->ctx;
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    tmoei_begin(ctx);
    if (trainer->began == 0.0) trainer->began = tmoei_seconds();

    tmoei_trainer_turn(trainer);
    const double loss = tmoei_step_gradients(trainer);
    if (ctx->error != TMOE_OK || tmoei_trainer_apply(trainer, loss, progress) != TMOE_OK)
        memset(trainer->grads, 0, trainer->span * sizeof(float)); /* the next step begins anew */
    tmoei_float_mode_leave(mode);
    return ctx->error;
}

/* ---- validation, and the loop ---- */

#define TMOEI_VALIDATION_LINES 32 /* of a forward pass */

/* Sums of the validation lines' losses and of their target positions. */
static tmoe_result tmoei_validate(tmoe_trainer *trainer, double *loss, double *targets)
{
    for (int t = 0; t < trainer->task_count; t++) {
        const tmoei_trained_task *task = &trainer->tasks[t];
        for (int from = 0; from < task->validation; from += TMOEI_VALIDATION_LINES) {
            const int count = tmoei_least(TMOEI_VALIDATION_LINES, task->validation - from);
            int chosen[TMOEI_VALIDATION_LINES];
            tmoei_pass pass;
            for (int i = 0; i < count; i++) chosen[i] = (int)task->first + task->count + from + i;

            TMOEI_TRY(tmoei_batch_fill(trainer, chosen, count, 0));
            const tmoei_guide guide = tmoei_guide_of(task->task);
            TMOEI_TRY(tmoei_evaluation_pass(trainer->model, &guide, trainer->group_tape, &pass));
            const tmoe_tensor *result = tmoei_group_loss(trainer, &pass, 0.0f, 1.0f);
            if (!result) return trainer->ctx->error;
            *loss += (double)result->x[0];
            *targets += (double)trainer->batch.target.tokens;
        }
    }
    return TMOE_OK;
}

TMOE_DEF float tmoe_trainer_validation_loss(tmoe_trainer *trainer)
{
    const tmoei_float_mode mode = tmoei_float_mode_enter();
    double loss = 0.0, targets = 0.0;
    tmoei_begin(trainer->ctx);

    const tmoe_result result = tmoei_validate(trainer, &loss, &targets);
    tmoe_tape_record(trainer->group_tape, 1);
    tmoei_float_mode_leave(mode);
    return result == TMOE_OK && targets > 0.0 ? (float)(loss / targets) : (float)NAN;
}

/* Measures the validation loss and keeps the parameters where it is the best. *stop is set when
 * patience is at its end. */
static tmoe_result tmoei_trainer_measure(tmoe_trainer *trainer, tmoe_progress *progress, int *stop)
{
    const int patience = trainer->training.patience;
    const float loss = tmoe_trainer_validation_loss(trainer);
    TMOEI_TRY(trainer->ctx->error);

    const int number = loss == loss;               /* NaN is no number */
    if (number && !(loss >= trainer->best_loss)) { /* the first one is compared with NaN */
        trainer->best_loss = loss;
        trainer->bad_evaluations = 0;
        trainer->best_step = trainer->model->step;
        memcpy(trainer->best, trainer->model->theta + trainer->first,
            trainer->span * sizeof(float));
    } else
        trainer->bad_evaluations++;
    *stop = patience > 0 && trainer->bad_evaluations >= patience;
    progress->validation_loss = loss;
    progress->best_validation_loss = trainer->best_loss;
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_trainer_run(tmoe_trainer *trainer)
{
    const tmoe_training *t = &trainer->training;
    const int every = t->evaluate_every_steps;
    int stop = 0;
    tmoei_begin(trainer->ctx);

    while (!stop && trainer->steps_done < t->steps) {
        tmoe_progress progress;
        TMOEI_TRY(tmoe_trainer_step(trainer, &progress));
        const int last = trainer->steps_done == t->steps;
        if (every > 0 && (last || trainer->steps_done % every == 0))
            TMOEI_TRY(tmoei_trainer_measure(trainer, &progress, &stop));
        if (!t->progress || !t->progress(t->progress_user, &progress)) continue;

        tmoei_begin(trainer->ctx); /* what the callback called may have failed */
        return tmoei_fail(trainer->ctx, TMOE_ERR_CANCELLED,
            "trainer_run: stopped by the progress callback after step %ld",
            (long)trainer->steps_done);
    }

    const int measured = trainer->best_loss == trainer->best_loss; /* not NaN */
    if (trainer->best && measured) {
        memcpy(trainer->model->theta + trainer->first, trainer->best,
            trainer->span * sizeof(float));
        trainer->model->step = trainer->best_step;
        trainer->model->version++;
    }
    return TMOE_OK;
}

TMOE_DEF tmoe_model *tmoe_trainer_model(tmoe_trainer *trainer)
{
    return trainer->model;
}

/* ---- the plan of memory ----
 * All that steps and validations use is reserved when the trainer is made. To know how much that
 * is, the largest group runs on dry tapes, which only count. Why no group takes more:
 *
 *   - A tensor has as many rows as the source or the target has tokens, or a fixed number, and the
 *     dry group has the most of both, over all groups.
 *   - A gradient's memory is taken again by shape (tmoei_free_block), so the blocks of a shape are
 *     as many as its gradients that live at once, whatever the lengths are.
 *   - A step does nothing that the dry one does not: on a dry tape all experts run and all routes
 *     are mixtures. */

/* Puts a group of this extent into the batch, without texts. One target more than there are keeps
 * its rows apart from the sources: where both are as many, gradients of both could share memory. */
static tmoe_result tmoei_batch_blank(tmoe_trainer *trainer, const tmoei_extent *extent)
{
    tmoei_batch *batch = &trainer->batch;
    const size_t B = extent->sequences, S = extent->sources;
    const size_t T = extent->targets + (extent->targets == S);
    TMOEI_TRY(tmoei_batch_reserve(trainer->ctx, batch, S, T, B));

    memset(batch->memory, 0, batch->capacity * sizeof(int));
    batch->source.sequences = batch->target.sequences = (int)B;
    batch->source.tokens = (int)S;
    batch->target.tokens = (int)T;
    for (size_t i = 0; i <= B; i++) {
        batch->source.offsets[i] = (int)(S * i / B);
        batch->target.offsets[i] = (int)(T * i / B);
    }
    return TMOE_OK;
}

static void tmoei_raise(size_t *most, size_t x)
{
    if (x > *most) *most = x;
}

/* Empties the tape and makes it dry, or not; the context's error stays. */
static void tmoei_tape_dry(tmoe_tape *tape, int dry)
{
    tape->last = NULL;
    tmoei_arena_reset(&tape->nodes);
    tmoei_arena_reset(&tape->big);
    tape->dry = tape->big.dry = dry;
}

static size_t tmoei_tape_planned(const tmoe_tape *tape)
{
    size_t nodes = TMOEI_ARENA_CHUNK, big = TMOEI_ARENA_CHUNK;
    tmoei_raise(&nodes, tape->nodes.peak);
    tmoei_raise(&big, tape->big.peak);
    return nodes + big;
}

/* Gives the empty tape one chunk in each arena that holds what it held at its peak. */
static tmoe_result tmoei_tape_reserve(tmoe_tape *tape)
{
    tmoei_arena *arenas[2] = { &tape->nodes, &tape->big };
    for (int i = 0; i < 2; i++) {
        tmoei_arena *arena = arenas[i];
        tmoei_owner_free(&arena->chunks);
        arena->size = arena->total = 0;
        if (!tmoei_arena_grow(arena, arena->peak)) return TMOE_ERR_MEMORY;
        arena->used = 0;
    }
    return TMOE_OK;
}

/* A dry step; of its groups, which come one after the other, only the largest. */
static tmoe_result tmoei_plan_step(tmoe_trainer *trainer)
{
    const int K = tmoei_least(trainer->training.tasks_per_step, trainer->task_count);
    double loss = 0.0;
    tmoei_trainer_turn(trainer);
    tmoe_tensor *routes = tmoei_step_route(trainer, K, &loss);
    TMOEI_TRY(trainer->ctx->error);
    tmoei_step_group(trainer, routes, 0, 0, 1.0f, &loss);
    TMOEI_TRY(trainer->ctx->error);
    return tmoei_tape_backward(trainer->router_tape);
}

/* Dry steps of both turns, where model and router alternate. */
static tmoe_result tmoei_plan_steps(tmoe_trainer *trainer)
{
    TMOEI_TRY(tmoei_batch_blank(trainer, &trainer->group));
    TMOEI_TRY(tmoei_plan_step(trainer));
    trainer->steps_done = trainer->training.alternate_steps;
    const tmoe_result result = tmoei_plan_step(trainer);
    trainer->steps_done = 0;
    tmoei_trainer_turn(trainer);
    return result;
}

/* A dry validation: the routes of all tasks, the merged layers and the largest group's forward
 * pass. */
static tmoe_result tmoei_plan_validation(tmoe_trainer *trainer)
{
    tmoe_model *model = trainer->model;
    tmoe_tape *tape = model->tape;
    tmoei_pass pass;
    TMOEI_TRY(tmoei_batch_blank(trainer, &trainer->validation));
    tmoei_tape_dry(tape, 1);
    tape->nodes.peak = tape->big.peak = 0;
    const tmoei_guide guide = tmoei_guide_of(0);
    const tmoe_result result = tmoei_evaluation_pass(model, &guide, trainer->group_tape, &pass);
    tmoei_tape_dry(tape, 0);
    TMOEI_TRY(result);

    if (model->R > 0 && tmoei_selection_has_router(model->config.selection))
        trainer->step_bytes += tmoei_tape_planned(tape);
    if (pass.blocks) trainer->step_bytes += tmoei_merged_floats(model) * sizeof(float);
    (void)tmoei_group_loss(trainer, &pass, 0.0f, 1.0f);
    return trainer->ctx->error;
}

/* Plans for trainer->group and, where it has sequences, trainer->validation. */
static tmoe_result tmoei_trainer_plan(tmoe_trainer *trainer)
{
    tmoei_tape_dry(trainer->router_tape, 1);
    tmoei_tape_dry(trainer->group_tape, 1);
    tmoe_result result = tmoei_plan_steps(trainer);
    if (result == TMOE_OK && trainer->validation.sequences > 0)
        result = tmoei_plan_validation(trainer);
    tmoe_tape_record(trainer->group_tape, 1);
    tmoei_tape_dry(trainer->router_tape, 0);
    tmoei_tape_dry(trainer->group_tape, 0);

    trainer->step_bytes += tmoei_tape_planned(trainer->router_tape);
    trainer->step_bytes += tmoei_tape_planned(trainer->group_tape);
    trainer->step_bytes += trainer->batch.capacity * sizeof(int);
    return result;
}

/* Takes what was planned; of the model's, by preparing a validation. */
static tmoe_result tmoei_trainer_reserve(tmoe_trainer *trainer)
{
    tmoe_model *model = trainer->model;
    tmoei_pass pass;
    TMOEI_TRY(tmoei_tape_reserve(trainer->router_tape));
    TMOEI_TRY(tmoei_tape_reserve(trainer->group_tape));
    if (trainer->validation.sequences == 0 || model->R == 0) return TMOE_OK;

    if (tmoei_selection_has_router(model->config.selection))
        TMOEI_TRY(tmoei_tape_reserve(model->tape));
    const tmoei_guide guide = tmoei_guide_of(trainer->tasks[0].task);
    const tmoe_result result = tmoei_evaluation_pass(model, &guide, trainer->group_tape, &pass);
    tmoe_tape_record(trainer->group_tape, 1);
    return result;
}

/* ---- making a trainer ---- */

TMOE_DEF void tmoe_trainer_destroy(tmoe_trainer *trainer)
{
    if (!trainer) return;
    tmoe_ctx *ctx = trainer->ctx;
    tmoei_texts_free(ctx, &trainer->texts);
    tmoei_free(ctx, trainer->updates);
    tmoei_free(ctx, trainer->batch.memory);
    tmoe_tape_destroy(trainer->router_tape);
    tmoe_tape_destroy(trainer->group_tape);
    tmoei_owner_free(&trainer->own);
    tmoei_free(ctx, trainer);
}

/* Appends `count` floats of a tensor from its float `at` on; NULL without memory. */
static tmoei_update *tmoei_update_add(tmoe_trainer *trainer, const tmoei_parameter *p, size_t at,
    size_t count)
{
    if (!tmoei_grow(trainer->ctx, &trainer->updates, &trainer->update_capacity,
            (size_t)trainer->update_count + 1, sizeof *trainer->updates))
        return NULL;
    tmoei_update *update = &trainer->updates[trainer->update_count++];
    update->of = p;
    update->offset = p->offset + at;
    update->count = count;
    update->rows = update->cols = 0;
    return update;
}

/* The optimiser's pieces, of all tensors that are trained. moment2 leaves out Muon's matrices. */
static void tmoei_trainer_updates(tmoe_trainer *trainer)
{
    const tmoe_model *model = trainer->model;
    const int muon = trainer->training.optimiser == TMOE_OPTIMISER_MUON;
    size_t left_out = 0;
    for (int i = 0; i < model->parameter_count; i++) {
        const tmoei_parameter *p = &model->parameters[i];
        const int matrices = muon ? p->matrices : 0;
        const size_t piece = matrices ? p->size / (size_t)matrices : TMOEI_UPDATE_FLOATS;
        if (!tmoei_moves(trainer->training.train, p->rate)) continue;
        if (trainer->update_count == 0) trainer->first = p->offset;
        trainer->span = p->offset + p->size - trainer->first;

        for (size_t done = 0; done < p->size; done += piece) {
            const size_t count = tmoei_least_size(p->size - done, piece);
            tmoei_update *update = tmoei_update_add(trainer, p, done, count);
            if (!update) return;
            update->second = update->offset - trainer->first - left_out;
            if (matrices == 0) continue;
            update->rows = p->rows / matrices;
            update->cols = p->cols;
            left_out += count;
            tmoei_raise(&trainer->polar_floats, tmoei_polar_floats(update->rows, update->cols));
        }
    }
    trainer->span2 = trainer->span - left_out;
}

/* A trainer for so many tasks and lines, still without texts. Dry, to plan only, it has no
 * gradients, moments and best parameters, but an address that nothing reads. */
static tmoe_trainer *tmoei_trainer_new(tmoe_model *model, const tmoe_training *training,
    size_t tasks, size_t lines, int dry)
{
    tmoe_ctx *ctx = model->ctx;
    const size_t K = (size_t)training->tasks_per_step, most = (size_t)training->examples_per_task;
    const size_t width = model->route_width + 1; /* no block has size 0 */
    tmoe_trainer *trainer = (tmoe_trainer *)tmoei_alloc(ctx, 1, sizeof *trainer, 1);
    if (!trainer) return NULL;

    tmoei_owner *own = &trainer->own;
    own->ctx = trainer->ctx = ctx;
    trainer->model = model;
    const char *label = training->label ? training->label : "";
    trainer->training = *training;
    trainer->training.label = tmoei_own_text(own, label, strlen(label));
    trainer->best_loss = (float)NAN;
    tmoei_trainer_turn(trainer);
    tmoei_trainer_updates(trainer);

    const size_t lists = tasks + 2 * lines + 2 + (2 + most) * K, floats = 2 * (K + 1) * width;
    const size_t span = (trainer->span / 16 + 1) * 16; /* each begins a cache line */
    const size_t span2 = (trainer->span2 / 16 + 1) * 16;
    const size_t copies = training->evaluate_every_steps > 0 ? 3 : 2;
    const size_t polar = (size_t)ctx->lanes * trainer->polar_floats;
    trainer->tasks = (tmoei_trained_task *)tmoei_own(own, tasks + 1, sizeof *trainer->tasks);
    trainer->examples =
        (tmoei_trained_example *)tmoei_own(own, lines + 1, sizeof *trainer->examples);
    trainer->task_order = (int *)tmoei_own(own, lists, sizeof(int));
    trainer->noise = (float *)tmoei_own(own, floats, sizeof(float));
    trainer->mixed = (tmoe_tensor **)tmoei_own(own, (size_t)model->L, sizeof *trainer->mixed);
    trainer->grads = (float *)(uintptr_t)TMOEI_ALIGN;
    trainer->polar_scratch = trainer->grads;
    if (!dry) trainer->grads = (float *)tmoei_own(own, copies * span + span2, sizeof(float));
    if (!dry && polar) trainer->polar_scratch = (float *)tmoei_own(own, polar, sizeof(float));
    trainer->step_bytes = polar * sizeof(float);
    trainer->router_tape = tmoei_tape_new(ctx);
    trainer->group_tape = tmoei_tape_new(ctx);
    if (ctx->error != TMOE_OK) {
        tmoe_trainer_destroy(trainer);
        return NULL;
    }

    trainer->example_order = trainer->task_order + tasks + 1;
    trainer->step_tasks = trainer->example_order + 2 * lines + 1;
    trainer->counts = trainer->step_tasks + K;
    trainer->chosen = trainer->counts + K;
    trainer->droutes = trainer->noise + K * width;
    trainer->entropy = trainer->droutes + K * width;
    trainer->use = trainer->entropy + width;
    trainer->moment1 = trainer->grads + span;
    trainer->moment2 = trainer->moment1 + span;
    if (copies == 3) trainer->best = trainer->moment2 + span2;
    return trainer;
}

/* Appends a training line of the task, tokenised: its input, then the first `outputs` of its
 * accepted outputs. */
static tmoe_result tmoei_example_add(const tmoe_model *model, tmoei_texts *texts,
    const tmoe_task *task, int line, int outputs)
{
    const tmoe_config *c = &model->config;
    const tmoe_example *example = &task->train[line];
    const char *instruction = c->task_input & TMOE_TASK_TEXT ? task->instruction : NULL;
    TMOEI_TRY(tmoei_texts_add(model, texts, instruction, example->input, c->source_tokens, "input",
        task->name, line));
    for (int o = 0; o < outputs; o++)
        TMOEI_TRY(tmoei_texts_add(model, texts, NULL, example->outputs[o], c->target_tokens,
            "output", task->name, line));
    return TMOE_OK;
}

/* Tokenises the lines of one training task and splits off those of validation: the last ones, at
 * most half of them. */
static tmoe_result tmoei_trainer_task(tmoe_trainer *trainer, const tmoe_task *task)
{
    tmoei_trained_task *trained = &trainer->tasks[trainer->task_count];
    const int lines = task->train_count;
    trained->task = tmoe_model_find_task(trainer->model, task->name);
    if (trained->task < 0)
        return tmoei_fail(trainer->ctx, TMOE_ERR_DATA,
            "trainer_create: the model does not know task %s; make it for the suite's training "
            "tasks",
            task->name);

    trained->first = trainer->example_count;
    trained->validation = tmoei_least(trainer->training.validation_lines, lines / 2);
    trained->count = lines - trained->validation;
    for (int i = 0; i < lines; i++) {
        tmoei_trained_example *example = &trainer->examples[trainer->example_count++];
        example->source = trainer->texts.count;
        example->targets = task->train[i].output_count;
        TMOEI_TRY(tmoei_example_add(trainer->model, &trainer->texts, task, i, example->targets));
    }
    if (lines > 0) trainer->task_count++;
    return TMOE_OK;
}

static tmoe_result tmoei_trainer_texts(tmoe_trainer *trainer, const tmoe_suite *suite)
{
    if (!trainer->model->tokenizer)
        return tmoei_fail(trainer->ctx, TMOE_ERR_DATA,
            "trainer_create: the model has no tokenizer");

    for (int s = 0; s < suite->count; s++)
        if (suite->tasks[s].part == TMOE_PART_TRAIN)
            TMOEI_TRY(tmoei_trainer_task(trainer, &suite->tasks[s]));
    if (trainer->task_count == 0)
        return tmoei_fail(trainer->ctx, TMOE_ERR_DATA,
            "trainer_create: the suite has no task to train on");
    return TMOE_OK;
}

static int tmoei_longer_first(const void *a, const void *b)
{
    const int x = *(const int *)a, y = *(const int *)b;
    return (x < y) - (x > y);
}

/* The most that `most` of n lengths can sum to, each taken up to `times` times; they are sorted. */
static size_t tmoei_largest(int *lengths, int n, int most, int times)
{
    size_t sum = 0;
    qsort(lengths, (size_t)n, sizeof *lengths, tmoei_longer_first);
    for (int i = 0; i / times < n && i < most; i++) sum += (size_t)lengths[i / times];
    return sum;
}

/* Raises *extent to any group of at most `most` of these examples, each up to `times` times: the
 * longest inputs and, by themselves, the longest accepted outputs. */
static void tmoei_lines_extent(tmoe_trainer *trainer, size_t first, int count, int most, int times,
    tmoei_extent *extent)
{
    const tmoei_texts *texts = &trainer->texts;
    int *sources = trainer->example_order, *targets = sources + count;

    for (int i = 0; i < count; i++) {
        const tmoei_trained_example *example = &trainer->examples[first + (size_t)i];
        const size_t x = example->source;
        sources[i] = (int)tmoei_text_length(texts, x);
        targets[i] = 0;
        for (size_t y = x + 1; y <= x + (size_t)example->targets; y++) {
            const int length = (int)tmoei_target_length(trainer->model, texts, y);
            if (length > targets[i]) targets[i] = length;
        }
    }
    tmoei_raise(&extent->sequences, (size_t)tmoei_least(count, most));
    tmoei_raise(&extent->sources, tmoei_largest(sources, count, tmoei_least(count, most), times));
    tmoei_raise(&extent->targets, tmoei_largest(targets, count, tmoei_least(count, most), times));
}

/* Names all settings that make no sense, in one message. */
static tmoe_result tmoei_training_check(tmoe_ctx *ctx, const tmoe_training *training)
{
    char text[TMOEI_PROBLEM_BYTES] = "";
    tmoei_fields_check(training, tmoei_training_fields, TMOEI_TRAINING_FIELDS, text, sizeof text);
    if (training->evaluate_every_steps > 0 && training->validation_lines == 0)
        tmoei_problem(text, sizeof text, "evaluate_every_steps needs validation_lines above 0");
    return text[0] ? tmoei_fail(ctx, TMOE_ERR_CONFIG, "training: %s", text) : TMOE_OK;
}

#define TMOEI_STEP_LINES 64 /* of a step, where examples_per_task is 0 */

static void tmoei_lines_complete(tmoe_training *training, int tasks)
{
    const int K = tmoei_least(training->tasks_per_step, tasks);
    if (training->examples_per_task > 0) return;
    training->examples_per_task = K > 0 && K < TMOEI_STEP_LINES ? TMOEI_STEP_LINES / K : 1;
}

/* Refuses a training with a turn in which nothing would move. */
static tmoe_result tmoei_turns_check(tmoe_trainer *trainer)
{
    const tmoe_config *c = &trainer->model->config;
    const tmoe_training *t = &trainer->training;
    for (int turn = 0; turn < 2; turn++) {
        int moving = 0;
        trainer->steps_done = turn * (int64_t)t->alternate_steps;
        tmoei_trainer_turn(trainer);
        for (int i = 0; i < trainer->update_count; i++) {
            const tmoei_rate rate = trainer->updates[i].of->rate;
            const int routed = tmoei_selection_has_router(c->selection);
            const int read = routed || (c->task_input & TMOE_TASK_VECTOR); /* task vectors are */
            if (rate == TMOEI_RATE_ROUTER && !routed) continue;
            if (rate == TMOEI_RATE_TASKS && !read) continue;
            moving += tmoei_moves(trainer->now, rate);
        }
        if (moving == 0)
            return tmoei_fail(trainer->ctx, TMOE_ERR_CONFIG,
                "training: train = %d and alternate_steps = %d move nothing in the turn of the %s",
                t->train, t->alternate_steps, turn == 0 ? "model" : "router");
    }
    trainer->steps_done = 0;
    tmoei_trainer_turn(trainer);
    return TMOE_OK;
}

TMOE_DEF tmoe_trainer *tmoe_trainer_create(tmoe_model *model, const tmoe_suite *suite,
    const tmoe_training *training)
{
    tmoe_training t = training ? *training : tmoe_training_default();
    size_t lines = 0;
    int tasks = 0;
    tmoei_begin(model->ctx);
    if (tmoei_training_check(model->ctx, &t) != TMOE_OK) return NULL;
    if (t.machines == 0) t.machines = 1;

    for (int s = 0; s < suite->count; s++) {
        if (suite->tasks[s].part != TMOE_PART_TRAIN) continue;
        lines += (size_t)suite->tasks[s].train_count;
        tasks += suite->tasks[s].train_count > 0;
    }
    tmoei_lines_complete(&t, tasks);
    tmoe_trainer *trainer = tmoei_trainer_new(model, &t, (size_t)suite->count, lines, 0);
    if (!trainer || tmoei_turns_check(trainer) != TMOE_OK
        || tmoei_trainer_texts(trainer, suite) != TMOE_OK) {
        tmoe_trainer_destroy(trainer);
        return NULL;
    }

    for (int i = 0; i < trainer->task_count; i++) {
        const tmoei_trained_task *task = &trainer->tasks[i];
        const int most = tmoei_sharing(trainer);
        const int meets = most < task->count && task->count % most != 0; /* two epochs in a group */
        tmoei_lines_extent(trainer, task->first, task->count, most, meets ? 2 : 1, &trainer->group);
        tmoei_lines_extent(trainer, task->first + (size_t)task->count, task->validation,
            TMOEI_VALIDATION_LINES, 1, &trainer->validation);
    }
    if (tmoei_trainer_plan(trainer) == TMOE_OK && tmoei_trainer_reserve(trainer) == TMOE_OK)
        return trainer;
    tmoe_trainer_destroy(trainer);
    return NULL;
}

TMOE_DEF size_t tmoe_trainer_bytes(const tmoe_trainer *trainer, tmoe_training_memory *memory)
{
    const size_t trained = trainer->span * sizeof(float);
    tmoe_training_memory m;
    m.parameters = trainer->model->size * sizeof(float);
    m.gradients = trained;
    m.moments = trained + trainer->span2 * sizeof(float);
    m.best = trainer->training.evaluate_every_steps > 0 ? trained : 0;
    m.step = trainer->step_bytes;
    m.total = m.parameters + m.gradients + m.moments + m.best + m.step;
    if (memory) *memory = m;
    return m.total;
}

#define TMOEI_BYTE_VOCABULARY 259 /* of tmoe_tokenizer_bytes */

/* A model to plan with: everything but the parameters, an address that nothing reads in their
 * place. */
static tmoe_model *tmoei_model_blank(tmoe_ctx *ctx, const tmoe_config *config, int tasks)
{
    const size_t count = (size_t)tasks;
    tmoe_task *named = (tmoe_task *)tmoei_alloc(ctx, count, sizeof *named, 1);
    if (!named) return NULL;
    for (size_t t = 0; t < count; t++) {
        named[t].name = "";
        named[t].instruction = "";
    }
    tmoe_model *model = tmoei_model_new(ctx, config, NULL, named, tasks);
    tmoei_free(ctx, named);
    if (model) model->theta = (float *)(uintptr_t)TMOEI_ALIGN;
    return model;
}

TMOE_DEF tmoe_result tmoe_training_bytes(tmoe_ctx *ctx, const tmoe_config *config,
    const tmoe_training *training, int tasks, int source_tokens, int target_tokens,
    tmoe_training_memory *memory)
{
    tmoe_config c = config ? *config : tmoe_config_default();
    tmoe_training t = training ? *training : tmoe_training_default();
    tmoei_begin(ctx);
    if (c.source_tokens == 0) c.source_tokens = source_tokens;
    if (c.target_tokens == 0) c.target_tokens = target_tokens;
    if (c.vocabulary == 0) c.vocabulary = t.vocabulary ? t.vocabulary : TMOEI_BYTE_VOCABULARY;
    if (tasks < 1 || source_tokens < 1 || source_tokens > c.source_tokens || target_tokens < 2
        || target_tokens > c.target_tokens)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "training_bytes: %d tasks, inputs of %d tokens, outputs of %d; at least 1, 1 to %d and "
            "2 to %d",
            tasks, source_tokens, target_tokens, c.source_tokens, c.target_tokens);
    TMOEI_TRY(tmoei_training_check(ctx, &t));
    tmoei_lines_complete(&t, tasks);

    tmoe_model *model = tmoei_model_blank(ctx, &c, tasks);
    tmoe_trainer *trainer = model ? tmoei_trainer_new(model, &t, (size_t)tasks, 0, 1) : NULL;
    tmoe_result result = ctx->error;
    if (trainer) {
        const size_t T = (size_t)(c.begin_in_target ? target_tokens : target_tokens - 1);
        const size_t S = (size_t)source_tokens, lines = (size_t)tmoei_sharing(trainer);
        const size_t held = (size_t)tmoei_least(TMOEI_VALIDATION_LINES, t.validation_lines);
        const tmoei_extent group = { lines, lines * S, lines * T };
        const tmoei_extent validation = { held, held * S, held * T };
        trainer->task_count = tasks;
        trainer->group = group;
        trainer->validation = validation;
        result = tmoei_trainer_plan(trainer);
        if (result == TMOE_OK) (void)tmoe_trainer_bytes(trainer, memory);
    }
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    return result;
}

/* ==== >>inference: one route, one merge, then an ordinary dense model answers ====================
 * All passes here are evaluation passes (tmoei_evaluation_pass, >>router). The route is computed
 * and the experts are merged once, before the first token; TMOE_MIX_OUTPUT runs the experts side by
 * side instead. A row is a request or one of its beams. */

/* ---- decoding: greedy, and beam search as transformers does it ---- */

#define TMOEI_ROWS_AT_ONCE 32 /* fills a register tile of rows: the weights are read once for all */

/* Encodes the packed sources and makes room for `beams` rows each, of at most `limit` positions. */
static tmoe_result tmoei_cache_create(tmoei_cache *cache, tmoe_model *model,
    const tmoei_guide *guide, const tmoei_pack *source, int beams, int limit)
{
    const tmoe_config *c = &model->config;
    const size_t slots = (size_t)source->sequences * (size_t)beams, places = (size_t)limit * slots;
    tmoei_owner *own = &cache->own;
    tmoei_pass pass;
    memset(cache, 0, sizeof *cache);
    own->ctx = model->ctx;
    cache->source = source;
    cache->beams = beams;
    cache->limit = limit;
    cache->slots = cache->rows = (int)slots;
    cache->experts = c->mix == TMOE_MIX_OUTPUT ? c->experts : 1;
    cache->keys =
        (float **)tmoei_own(own, 2 * (size_t)(c->decoder_layers * cache->experts), sizeof(float *));
    cache->memory.rows = source->tokens;
    cache->memory.cols = c->width;
    cache->memory.x = (float *)tmoei_own(own, tmoei_elements(&cache->memory), sizeof(float));
    cache->slot_of = (int *)tmoei_own(own, 2 * places + 3 * slots, sizeof(int));
    if (own->ctx->error != TMOE_OK) return own->ctx->error;
    cache->next_slot_of = cache->slot_of + places;
    cache->request_of = cache->next_slot_of + places;
    cache->ids = cache->request_of + slots;
    cache->positions = cache->ids + slots;
    for (int r = 0; r < cache->rows; r++) cache->request_of[r] = r / beams;

    TMOEI_TRY(tmoei_evaluation_pass(model, guide, model->tape, &pass));
    const tmoe_tensor *h = tmoei_encode(&pass, source);
    if (h) memcpy(cache->memory.x, h->x, tmoei_elements(h) * sizeof(float));
    return own->ctx->error;
}

/* Returns the logits (rows, V) of the position after the tokens in cache->ids, up to the next
 * call. */
static tmoe_tensor *tmoei_cache_step(tmoei_cache *cache, tmoe_model *model,
    const tmoei_guide *guide)
{
    const tmoei_pack target = { cache->rows, cache->rows, cache->ids, cache->positions, NULL };
    tmoei_pass pass;
    if (tmoei_evaluation_pass(model, guide, model->tape, &pass) != TMOE_OK) return NULL;
    for (int r = 0; r < cache->rows; r++) {
        int *slot = cache->slot_of + (size_t)r * (size_t)cache->limit + cache->position;
        /* without beams a request stays in its slot, and its keys are one run */
        *slot = cache->beams == 1 && cache->position > 0 ? slot[-1] : r;
        cache->positions[r] = cache->position;
    }
    pass.cache = cache;
    return tmoei_head(&pass, tmoei_decode(&pass, &target, NULL, NULL));
}

/* Moves on to the next position, where row r continues row parents[r]. request_of is rewritten in
 * place: requests only move to the front, and all rows of one hold the same value. */
static void tmoei_cache_reorder(tmoei_cache *cache, const int *parents, int rows)
{
    const size_t limit = (size_t)cache->limit, used = ((size_t)cache->position + 1) * sizeof(int);
    int *before = cache->slot_of, *after = cache->next_slot_of;
    for (int r = 0; r < rows; r++) {
        memcpy(after + (size_t)r * limit, before + (size_t)parents[r] * limit, used);
        cache->request_of[r] = cache->request_of[parents[r]];
    }
    cache->slot_of = after;
    cache->next_slot_of = before;
    cache->rows = rows;
    cache->position++;
}

/* A row, continued by one token; ended: which is the end, or the last there is room for. */
typedef struct tmoei_hypothesis {
    float score;
    int row, token, ended;
} tmoei_hypothesis;

typedef struct tmoei_search {
    tmoe_model *model;
    tmoei_guide guide;
    tmoe_generation how;
    int wanted; /* continuations of a request: 1, or 2 * beams, as half of these may end */
    tmoei_cache cache;
    float *logits;
    int length;                   /* tokens of every running row, start token included */
    int *tokens, *next_tokens;    /* (rows, max_length) of the running rows */
    int *parents;                 /* (rows): what a row of the next step continues */
    float *scores, *next_scores;  /* (rows): sum of log p */
    tmoei_hypothesis *candidates; /* (requests, 2 * beams), best first */
    int *finished, *lengths;      /* (requests, beams, max_length), (requests, beams): best first */
    size_t most;                  /* max_length */
    float *final_scores;          /* (requests, beams): score / length^length_penalty */
} tmoei_search;

#define TMOEI_NO_SCORE (-1e9f) /* of an answer that is not there; the number is transformers' */

/* Sets the logits x (V) of what may not come next in a row to -inf: what would repeat an n-gram,
 * the end before min_length, all but a forced token. A forced token's log p becomes 0. */
static void tmoei_search_forbid(const tmoei_search *s, int row, float *x, float log_sum_exp)
{
    const tmoe_generation *how = &s->how;
    const int *tokens = s->tokens + (size_t)row * s->most, n = how->no_repeat_ngram;
    if (n > 0)
        for (int i = 0; i + n <= s->length; i++) {
            const int *newest = tokens + s->length - (n - 1);
            if (memcmp(tokens + i, newest, (size_t)(n - 1) * sizeof(int)) == 0)
                x[tokens[i + n - 1]] = -(float)INFINITY;
        }
    if (s->length < how->min_length) x[s->model->config.end_id] = -(float)INFINITY;

    int forced = -1; /* the end takes precedence, as in transformers */
    if (s->length == 1) forced = how->forced_begin_id;
    if (s->length == how->max_length - 1 && how->forced_end_id >= 0) forced = how->forced_end_id;
    if (forced >= 0)
        for (int v = 0; v < s->model->V; v++) x[v] = v == forced ? log_sum_exp : -(float)INFINITY;
}

/* Inserts c into the best `most` candidates; of equal ones the earlier stays ahead. Returns how
 * many there are now. */
static int tmoei_candidate_insert(tmoei_hypothesis *list, int count, int most,
    const tmoei_hypothesis *c)
{
    int place = count < most ? count++ : count - 1;
    for (; place > 0 && list[place - 1].score < c->score; place--) list[place] = list[place - 1];
    list[place] = *c;
    return count;
}

/* The best continuations of the rows of one request. */
static void tmoei_search_chunk(void *arg, int chunk, int lane)
{
    const tmoei_search *s = (const tmoei_search *)arg;
    const int B = s->how.beams, V = s->model->V;
    tmoei_hypothesis *best = s->candidates + (size_t)chunk * 2 * (size_t)B;
    int count = 0;
    (void)lane;
    for (int row = chunk * B; row < (chunk + 1) * B; row++) {
        float *x = s->logits + (size_t)row * (size_t)V;
        const float lse = B > 1 ? tmoei_log_sum_exp(s->model->ctx, x, V) : 0.0f;
        tmoei_search_forbid(s, row, x, lse);
        for (int v = 0; v < V; v++) {
            tmoei_hypothesis c = { s->scores[row] + (x[v] - lse), row, v, 0 };
            if (count == s->wanted && !(c.score > best[count - 1].score)) continue;
            c.ended = v == s->model->config.end_id || s->length + 1 >= s->how.max_length;
            count = tmoei_candidate_insert(best, count, s->wanted, &c);
        }
    }
}

/* Keeps a finished answer if it is among the request's `beams` best. */
static void tmoei_search_finish(tmoei_search *s, int request, const tmoei_hypothesis *c,
    float score)
{
    const size_t most = s->most, beams = (size_t)s->how.beams, base = (size_t)request * beams;
    size_t to = base + beams - 1;
    if (score <= s->final_scores[to]) return;
    for (; to > base && s->final_scores[to - 1] < score; to--) {
        s->final_scores[to] = s->final_scores[to - 1];
        s->lengths[to] = s->lengths[to - 1];
        memcpy(s->finished + to * most, s->finished + (to - 1) * most, most * sizeof(int));
    }
    int *tokens = s->finished + to * most;
    memcpy(tokens, s->tokens + (size_t)c->row * most, (size_t)s->length * sizeof(int));
    tokens[s->length] = c->token;
    s->final_scores[to] = score;
    s->lengths[to] = s->length + 1;
}

/* Returns whether no running row can replace a finished answer any more; `running` is the score of
 * the best. TMOE_EARLY_STOPPING_TRUE: whether `beams` answers are finished. */
static int tmoei_search_is_over(const tmoei_search *s, int request, float running)
{
    const tmoe_generation *how = &s->how;
    const float worst = s->final_scores[(size_t)(request + 1) * (size_t)how->beams - 1];
    if (how->early_stopping == TMOE_EARLY_STOPPING_TRUE && worst > TMOEI_NO_SCORE) return 1;
    /* A sum of log p only falls. What it can reach is the present sum, divided by the length at
     * which the quotient is largest; FALSE takes the present length, as transformers does. */
    int length = s->length;
    if (how->early_stopping == TMOE_EARLY_STOPPING_NEVER && how->length_penalty > 0.0f)
        length = how->max_length - 1;
    return !(running / powf((float)length, how->length_penalty) > worst);
}

/* One request's step: its candidates finish, or become its rows from row `next` on. Returns the
 * number of rows: beams, or 0 where the request is done. */
static int tmoei_search_advance(tmoei_search *s, int index, int next)
{
    const int B = s->how.beams, request = s->cache.request_of[index * B];
    const size_t most = s->most, length = (size_t)s->length;
    const float divisor = powf((float)s->length, s->how.length_penalty);
    tmoei_hypothesis *c = s->candidates + (size_t)index * 2 * (size_t)B;
    int ended = 0;
    for (int i = 0; i < s->wanted; i++) {
        if (!c[i].ended) continue;
        if (i < B) tmoei_search_finish(s, request, &c[i], B > 1 ? c[i].score / divisor : 0.0f);
        c[i].score += TMOEI_NO_SCORE; /* continued only where nothing else can be */
        ended++;
    }

    for (int to = next; to < next + B; to++) {
        tmoei_hypothesis *best = c;
        for (int i = 1; i < s->wanted; i++)
            if (c[i].score > best->score) best = &c[i];
        int *tokens = s->next_tokens + (size_t)to * most;
        memcpy(tokens, s->tokens + (size_t)best->row * most, length * sizeof(int));
        tokens[length] = best->token;
        s->next_scores[to] = B > 1 ? best->score : 0.0f;
        s->parents[to] = best->row;
        best->score = -(float)INFINITY; /* taken */
    }

    if (ended == s->wanted) return 0;
    if (B > 1 && tmoei_search_is_over(s, request, s->next_scores[next])) return 0;
    return B;
}

/* Allocates the search's arrays; every row begins with the start token. */
static tmoe_result tmoei_search_begin(tmoei_search *s)
{
    tmoei_owner *own = &s->cache.own;
    const size_t rows = (size_t)s->cache.rows, most = s->most;
    s->tokens = (int *)tmoei_own(own, 3 * rows * most, sizeof(int));
    s->lengths = (int *)tmoei_own(own, 2 * rows, sizeof(int));
    s->scores = (float *)tmoei_own(own, 3 * rows, sizeof(float));
    s->candidates = (tmoei_hypothesis *)tmoei_own(own, 2 * rows, sizeof *s->candidates);
    if (own->ctx->error != TMOE_OK) return own->ctx->error;
    s->next_tokens = s->tokens + rows * most;
    s->finished = s->next_tokens + rows * most;
    s->next_scores = s->scores + rows;
    s->final_scores = s->next_scores + rows;
    s->parents = s->lengths + rows;
    for (size_t r = 0; r < rows; r++) {
        s->tokens[r * most] = s->finished[r * most] = s->model->config.start_id;
        s->lengths[r] = 1; /* an answer that is not there is the start token alone */
        s->final_scores[r] = TMOEI_NO_SCORE;
        /* the beams of a request are equal at first: only one counts */
        s->scores[r] = r % (size_t)s->how.beams == 0 ? 0.0f : TMOEI_NO_SCORE;
    }
    s->length = 1;
    return TMOE_OK;
}

/* One token for every running row. */
static tmoe_result tmoei_search_step(tmoei_search *s)
{
    tmoei_cache *cache = &s->cache;
    const int requests = cache->rows / s->how.beams;
    int next = 0;
    for (int r = 0; r < cache->rows; r++)
        cache->ids[r] = s->tokens[(size_t)r * s->most + (size_t)s->length - 1];
    tmoe_tensor *logits = tmoei_cache_step(cache, s->model, &s->guide);
    if (!logits) return s->model->ctx->error;
    s->logits = logits->x;
    tmoei_parallel(s->model->ctx, tmoei_search_chunk, s, requests);
    for (int i = 0; i < requests; i++) next += tmoei_search_advance(s, i, next);
    memcpy(s->tokens, s->next_tokens, (size_t)next * s->most * sizeof(int));
    memcpy(s->scores, s->next_scores, (size_t)next * sizeof(float));
    tmoei_cache_reorder(cache, s->parents, next);
    s->length++;
    return TMOE_OK;
}

/* Searches from the start token until every request is done. The caller frees s->cache.own. */
static tmoe_result tmoei_search_run(tmoei_search *s, const tmoei_pack *source)
{
    tmoe_ctx *ctx = s->model->ctx;
    tmoe_result result = tmoei_cache_create(&s->cache, s->model, &s->guide, source, s->how.beams,
        s->how.max_length - 1);
    if (result == TMOE_OK) result = tmoei_search_begin(s);
    /* the decoder's weights are read at every step; those of the encoder, above, were read once */
    ctx->keeping = s->cache.rows > TMOEI_FEW_ROWS;
    while (result == TMOE_OK && s->cache.rows > 0) result = tmoei_search_step(s);
    ctx->keeping = 0;
    return result;
}

/* Copies the answers of a search to the caller's arrays, from request `first` on. */
static void tmoei_search_store(const tmoei_search *s, int first, const tmoe_generated *out)
{
    const int returned = s->how.returned;
    for (int i = 0; i < s->cache.source->sequences; i++)
        for (int j = 0; j < returned; j++) {
            const int from = i * s->how.beams + j, length = s->lengths[from];
            const size_t to = (size_t)(first + i) * (size_t)returned + (size_t)j;
            const int *answer = s->finished + (size_t)from * s->most;
            int *tokens = out->tokens + to * s->most;
            for (int t = 0; t < s->how.max_length; t++)
                tokens[t] = t < length ? answer[t] : s->model->config.pad_id;
            out->token_counts[to] = length;
            if (out->scores) out->scores[to] = s->final_scores[from];
        }
}

/* Checks the settings and completes them for this model. */
static tmoe_result tmoei_generation_check(tmoe_model *model, tmoe_generation *how)
{
    const int V = model->V, longest = model->config.target_tokens + 1; /* and the start token */
    char text[TMOEI_PROBLEM_BYTES] = "";
    const size_t size = sizeof text;
    tmoei_fields_check(how, tmoei_generation_fields, TMOEI_GENERATION_FIELDS, text, size);
    if (how->max_length == 0 || how->max_length > longest) how->max_length = longest;
    if (how->max_length == 1) tmoei_problem(text, size, "max_length is 1: the start token alone");
    if (how->returned > how->beams)
        tmoei_problem(text, size, "returned is %d, must be at most beams = %d", how->returned,
            how->beams);
    if (how->forced_begin_id >= V || how->forced_end_id >= V || model->config.end_id >= V)
        tmoei_problem(text, size, "a forced id or the model's end_id is not below V = %d", V);
    if (how->beams > V / 2)
        tmoei_problem(text, size, "beams is %d, must be at most V / 2", how->beams);
    return text[0] ? tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT, "generation: %s", text) : TMOE_OK;
}

static tmoe_result tmoei_request_check(tmoe_model *model, const tmoe_request *request)
{
    const int most = model->config.source_tokens, *ids = request->ids;
    const int known = request->task >= 0 && request->task < model->N;
    const int no_route = model->R > 0 && !request->route;
    const int no_vector = (model->config.task_input & TMOE_TASK_VECTOR) && !request->vector;
    if (request->count < 0 || (!known && (no_route || no_vector)))
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "generate: %d requests (at least 0) of task %d (of %d; others need %s)", request->count,
            request->task, model->N, no_route ? "a route" : "a vector");
    for (int i = 0; i < request->count; i++) {
        const int n = request->lengths[i];
        int good = n >= 1 && n <= most;
        for (int t = 0; good && t < n; t++) good = ids[t] >= 0 && ids[t] < model->V;
        if (!good)
            return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
                "generate: request %d has %d tokens (1 to %d), or an id that is not 0 <= id < %d",
                i, n, most, model->V);
        ids += n;
    }
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_generate(tmoe_model *model, const tmoe_request *request,
    const tmoe_generated *out)
{
    tmoe_ctx *ctx = model->ctx;
    const int most = model->config.source_tokens, *ids = request->ids;
    tmoei_search s;
    tmoei_batch b;
    tmoei_begin(ctx);
    memset(&s, 0, sizeof s);
    memset(&b, 0, sizeof b);
    s.model = model;
    s.guide.task = request->task;
    s.guide.route = request->route;
    s.guide.vector = request->vector;
    s.how = request->how ? *request->how : model->generation;
    TMOEI_TRY(tmoei_request_check(model, request));
    TMOEI_TRY(tmoei_generation_check(model, &s.how));
    s.wanted = s.how.beams > 1 ? 2 * s.how.beams : 1;
    s.most = (size_t)s.how.max_length;

    const tmoei_float_mode mode = tmoei_float_mode_enter();
    const int at_once = s.how.beams < TMOEI_ROWS_AT_ONCE ? TMOEI_ROWS_AT_ONCE / s.how.beams : 1;
    for (int first = 0; first < request->count && ctx->error == TMOE_OK; first += at_once) {
        const int n = tmoei_least(at_once, request->count - first);
        if (tmoei_batch_reserve(ctx, &b, (size_t)n * (size_t)most, 1, (size_t)n) != TMOE_OK) break;
        for (int i = first; i < first + n; i++) {
            tmoei_batch_put(&b, ids, (size_t)request->lengths[i], NULL, 0, 0);
            ids += request->lengths[i];
        }
        if (tmoei_search_run(&s, &b.source) == TMOE_OK) tmoei_search_store(&s, first, out);
        tmoei_owner_free(&s.cache.own);
    }

    while (ctx->kept) { /* packed weights */
        struct tmoei_kept *newest = ctx->kept;
        ctx->kept = newest->before;
        tmoei_free(ctx, newest);
    }
    tmoei_free(ctx, b.memory);
    tmoei_float_mode_leave(mode);
    return ctx->error;
}

/* ---- texts: a known task by its name, an unseen one by its instruction ---- */

/* Returns the index of the known task of this name, for a function of the API. If there is none:
 * -1, and a message with the tasks whose instructions have most in common with the name. */
static int tmoei_known_task(tmoe_model *model, const char *function, const char *name)
{
    int tasks[3];
    float cosines[3];
    char text[1024] = "";
    if (!name) name = "";
    const int known = tmoe_model_find_task(model, name);
    if (known >= 0) return known;
    const int count = tmoe_model_nearest_tasks(model, name, 3, tasks, cosines);
    for (int i = 0; i < count; i++)
        tmoei_problem(text, sizeof text, "%s", model->tasks[tasks[i]].name);
    (void)tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
        "%s: no task of the model is named '%.200s' (nearest: %s); for an instruction there are "
        "tmoe_answer_unseen and tmoe_route_unseen",
        function, name, count ? text : "none");
    return -1;
}

/* What is asked of the model. */
typedef struct tmoei_asked {
    const char *name;   /* for messages: its name, or the instruction */
    const char *prefix; /* what the encoder reads before an input, or NULL */
    tmoei_guide guide;
    tmoei_owner own; /* freed by the caller, in any case */
} tmoei_asked;

/* What a caller asks about. route may be NULL. */
typedef struct tmoei_question {
    const char *name, *instruction;
    const float *route;
} tmoei_question;

/* A name alone must be a known task's. An instruction alone is an unseen task's. Both are those of
 * a suite's task, which is known or not. An unseen task gets the vector of its instruction and,
 * without a route, the one of TMOE_ZERO_SHOT_ROUTER. */
static tmoe_result tmoei_ask(tmoe_model *model, const tmoei_question *question, tmoei_asked *asked)
{
    const char *name = question->name, *instruction = question->instruction;
    const float *route = question->route;
    memset(asked, 0, sizeof *asked);
    tmoei_guide *guide = &asked->guide;
    asked->own.ctx = model->ctx;
    guide->task = -1;
    guide->route = route;
    if (!instruction) {
        guide->task = tmoei_known_task(model, "answer", name);
        if (guide->task < 0) return model->ctx->error;
        instruction = model->tasks[guide->task].instruction;
    } else if (name)
        guide->task = tmoe_model_find_task(model, name);
    asked->name = name ? name : instruction;
    asked->prefix = model->config.task_input & TMOE_TASK_TEXT ? instruction : NULL;
    if (guide->task >= 0) return TMOE_OK;

    const size_t k = (size_t)model->config.vector_width;
    float *vector = (float *)tmoei_own(&asked->own, k + model->route_width, sizeof(float));
    if (!vector) return TMOE_ERR_MEMORY;
    guide->vector = vector;
    TMOEI_TRY(tmoe_vector_unseen(model, instruction, vector));
    if (route || model->R == 0) return TMOE_OK;
    guide->route = vector + k;
    return tmoe_route_unseen(model, instruction, TMOE_ZERO_SHOT_ROUTER, vector + k);
}

/* Returns the text of tokens, to be freed with tmoei_free; NULL when there is no memory. */
static char *tmoei_text_of(tmoe_model *model, const int *tokens, size_t count)
{
    const int skip = TMOE_TOKENIZER_SKIP_SPECIALS;
    size_t n = 0;
    if (tmoe_tokenizer_decode(model->tokenizer, tokens, count, skip, NULL, 0, &n) != TMOE_OK)
        return NULL;
    char *text = (char *)tmoei_alloc(model->ctx, n + 1, 1, 1);
    if (text) (void)tmoe_tokenizer_decode(model->tokenizer, tokens, count, skip, text, n + 1, &n);
    return text;
}

/* Tokenises the inputs, generates how->returned answers to each and decodes them. scores: of all
 * answers, or NULL. how->max_length is filled in. */
static tmoe_result tmoei_answers(tmoe_model *model, const tmoei_question *question,
    const char *const *inputs, int count, tmoe_generation *how, char **answers, float *scores)
{
    tmoe_ctx *ctx = model->ctx;
    const int total = count * how->returned;
    tmoe_request request;
    tmoe_generated out;
    tmoei_asked asked;
    tmoei_texts texts;
    memset(&texts, 0, sizeof texts);
    memset(&out, 0, sizeof out);
    tmoei_begin(ctx);
    if (answers)
        for (int i = 0; i < total; i++) answers[i] = NULL;
    if (count < 0 || (count > 0 && (!inputs || !answers))
        || (!question->name && !question->instruction) || !model->tokenizer)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "answer: %d inputs; at least 0, a model with a tokenizer, and no argument NULL", count);

    if (tmoei_ask(model, question, &asked) == TMOE_OK) (void)tmoei_generation_check(model, how);
    const size_t n = (size_t)total, most = (size_t)how->max_length;
    int *lengths = NULL;
    if (ctx->error == TMOE_OK) {
        lengths = (int *)tmoei_own(&asked.own, n, sizeof(int));
        out.token_counts = (int *)tmoei_own(&asked.own, n, sizeof(int));
        out.tokens = (int *)tmoei_own(&asked.own, n, most * sizeof(int));
    }
    for (int i = 0; i < count && ctx->error == TMOE_OK; i++)
        if (tmoei_texts_add(model, &texts, asked.prefix, inputs[i], model->config.source_tokens,
                "input", asked.name, i)
            == TMOE_OK)
            lengths[i] = (int)tmoei_text_length(&texts, (size_t)i);

    request.task = asked.guide.task;
    request.route = asked.guide.route;
    request.vector = asked.guide.vector;
    request.ids = texts.ids;
    request.lengths = lengths;
    request.count = count;
    request.how = how;
    out.scores = scores;
    if (ctx->error == TMOE_OK) (void)tmoe_generate(model, &request, &out);
    for (size_t i = 0; i < n && ctx->error == TMOE_OK; i++)
        answers[i] = tmoei_text_of(model, out.tokens + i * most, (size_t)out.token_counts[i]);
    if (ctx->error != TMOE_OK) tmoe_answers_free(model, answers, total);
    tmoei_texts_free(ctx, &texts);
    tmoei_owner_free(&asked.own);
    return ctx->error;
}

/* One answer to each input, as the model's generation says. */
static tmoe_result tmoei_answer_each(tmoe_model *model, const tmoei_question *question,
    const char *const *inputs, int count, char **answers)
{
    tmoe_generation how = model->generation;
    how.returned = 1;
    return tmoei_answers(model, question, inputs, count, &how, answers, NULL);
}

static tmoe_result tmoei_answer(tmoe_model *model, const tmoei_question *question,
    const char *input, char *text, size_t size)
{
    char *answer = NULL;
    tmoei_begin(model->ctx);
    if (size > 0 && !text)
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT, "answer: the text is NULL");
    if (size > 0) text[0] = 0;
    TMOEI_TRY(tmoei_answer_each(model, question, &input, 1, &answer));
    const size_t length = strlen(answer);
    if (length < size)
        memcpy(text, answer, length + 1);
    else
        (void)tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "answer: %lu bytes and a NUL do not fit into %lu", (unsigned long)length,
            (unsigned long)size);
    tmoe_answers_free(model, &answer, 1);
    return model->ctx->error;
}

TMOE_DEF tmoe_result tmoe_answer(tmoe_model *model, const char *task_name, const char *input,
    char *text, size_t size)
{
    const tmoei_question question = { task_name, NULL, NULL };
    return tmoei_answer(model, &question, input, text, size);
}

TMOE_DEF tmoe_result tmoe_answer_unseen(tmoe_model *model, const char *instruction,
    const char *input, char *text, size_t size)
{
    const tmoei_question question = { NULL, instruction, NULL };
    return tmoei_answer(model, &question, input, text, size);
}

TMOE_DEF tmoe_result tmoe_answer_many(tmoe_model *model, const char *task_name, const float *route,
    const char *const *inputs, int count, char **answers)
{
    const tmoei_question question = { task_name, NULL, route };
    return tmoei_answer_each(model, &question, inputs, count, answers);
}

TMOE_DEF tmoe_result tmoe_answer_many_unseen(tmoe_model *model, const char *instruction,
    const float *route, const char *const *inputs, int count, char **answers)
{
    const tmoei_question question = { NULL, instruction, route };
    return tmoei_answer_each(model, &question, inputs, count, answers);
}

/* Refuses a question that names both a known task and an instruction. */
static tmoe_result tmoei_one_of_both(tmoe_model *model, const char *function, const char *task_name,
    const char *instruction)
{
    tmoei_begin(model->ctx);
    if (!task_name != !instruction) return TMOE_OK;
    return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
        "%s: either the task's name or the instruction must be NULL, but not both", function);
}

TMOE_DEF tmoe_result tmoe_answer_best(tmoe_model *model, const char *task_name,
    const char *instruction, const float *route, const char *input, int wanted, char **answers,
    float *log_likelihoods)
{
    const tmoei_question question = { task_name, instruction, route };
    tmoe_generation how = model->generation;
    const int sound = wanted >= 1 && wanted <= TMOEI_BEAMS_MAX && log_likelihoods;
    if (sound && answers)
        for (int i = 0; i < wanted; i++) answers[i] = NULL;
    TMOEI_TRY(tmoei_one_of_both(model, "answer_best", task_name, instruction));
    if (!sound)
        return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
            "answer_best: %d answers wanted, 1 to %d; log_likelihoods must not be NULL", wanted,
            TMOEI_BEAMS_MAX);
    how.returned = wanted;
    if (how.beams < wanted) how.beams = wanted;
    if (how.beams < 2) how.beams = 2; /* greedy search counts nothing */
    how.length_penalty = 0.0f;        /* scores are sums then */
    return tmoei_answers(model, &question, &input, 1, &how, answers, log_likelihoods);
}

TMOE_DEF void tmoe_answers_free(tmoe_model *model, char **answers, int count)
{
    for (int i = 0; i < count; i++) {
        tmoei_free(model->ctx, answers[i]);
        answers[i] = NULL;
    }
}

/* ---- the most likely label ---- */

/* out[i] = sum over the tokens t of label i of log p(y_t | y_<t, x), for the one source x. */
static tmoe_result tmoei_log_likelihoods(tmoe_model *model, const tmoei_guide *guide,
    const tmoei_texts *source, const tmoei_texts *labels, double *out)
{
    const size_t skip = model->config.begin_in_target ? 0 : 1, n = labels->count;
    tmoe_tensor *h = NULL;
    tmoei_batch b;
    tmoei_pass pass;
    memset(&b, 0, sizeof b);
    TMOEI_TRY(tmoei_batch_reserve(model->ctx, &b, source->ids_used * n, labels->ids_used, n));
    for (size_t i = 0; i < n; i++)
        tmoei_batch_put(&b, source->ids, source->ids_used, labels->ids + labels->offsets[i] + skip,
            tmoei_target_length(model, labels, i), model->config.start_id);

    if (tmoei_evaluation_pass(model, guide, model->tape, &pass) == TMOE_OK) {
        h = tmoei_encode(&pass, &b.source);
        h = tmoei_head(&pass, tmoei_decode(&pass, &b.target, h, &b.source));
    }
    if (h)
        for (size_t i = 0; i < n; i++) {
            out[i] = 0.0;
            for (int t = b.target.offsets[i]; t < b.target.offsets[i + 1]; t++) {
                const float *x = h->x + (size_t)t * (size_t)model->V;
                out[i] += (double)(x[b.labels[t]] - tmoei_log_sum_exp(model->ctx, x, model->V));
            }
        }
    tmoei_free(model->ctx, b.memory);
    return model->ctx->error;
}

/* The index of the best label; sum over tokens, or mean. */
static int tmoei_best_label(const tmoe_model *model, const tmoei_texts *labels, double *scores,
    tmoe_label_score how)
{
    int best = 0;
    for (size_t i = 0; i < labels->count; i++) {
        if (how == TMOE_LABEL_MEAN) scores[i] /= (double)tmoei_target_length(model, labels, i);
        if (scores[i] > scores[best]) best = (int)i;
    }
    return best;
}

TMOE_DEF tmoe_result tmoe_choose_label(tmoe_model *model, const tmoe_task *task, const float *route,
    const char *const *inputs, int count, tmoe_label_score how, int *chosen)
{
    tmoe_ctx *ctx = model->ctx;
    const tmoe_config *c = &model->config;
    tmoei_asked asked;
    tmoei_texts labels, source;
    tmoei_begin(ctx);
    if (!task) return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "choose_label: the task is NULL");
    int empty = task->label_count < 1;
    for (int i = 0; i < task->label_count; i++)
        empty |= !task->labels || !task->labels[i] || task->labels[i][0] == 0;
    if (empty || !model->tokenizer || count < 0 || (count > 0 && (!inputs || !chosen))
        || (unsigned)how > TMOE_LABEL_MEAN)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "choose_label: task %s has a closed set of %d labels (at least 1, none empty), "
            "%d inputs (at least 0), score %d (0 or 1); the model needs a tokenizer",
            task->name, task->label_count, count, (int)how);
    memset(&labels, 0, sizeof labels);
    memset(&source, 0, sizeof source);

    const tmoei_float_mode mode = tmoei_float_mode_enter();
    double *scores = NULL;
    const tmoei_question question = { task->name, task->instruction, route };
    if (tmoei_ask(model, &question, &asked) == TMOE_OK)
        scores = (double *)tmoei_own(&asked.own, (size_t)task->label_count, sizeof *scores);
    for (int i = 0; i < task->label_count && ctx->error == TMOE_OK; i++)
        (void)tmoei_texts_add(model, &labels, NULL, task->labels[i], c->target_tokens, "label",
            task->name, i);
    for (int i = 0; i < count && ctx->error == TMOE_OK; i++) {
        source.count = source.ids_used = 0; /* one at a time */
        if (tmoei_texts_add(model, &source, asked.prefix, inputs[i], c->source_tokens, "input",
                task->name, i)
                == TMOE_OK
            && tmoei_log_likelihoods(model, &asked.guide, &source, &labels, scores) == TMOE_OK)
            chosen[i] = tmoei_best_label(model, &labels, scores, how);
    }
    tmoei_owner_free(&asked.own);
    tmoei_texts_free(ctx, &source);
    tmoei_texts_free(ctx, &labels);
    tmoei_float_mode_leave(mode);
    return ctx->error;
}

TMOE_DEF tmoe_result tmoe_score_answers(tmoe_model *model, const char *task_name,
    const char *instruction, const float *route, const char *input, const char *const *answers,
    int count, float *log_likelihoods)
{
    tmoe_ctx *ctx = model->ctx;
    const tmoe_config *c = &model->config;
    const tmoei_question question = { task_name, instruction, route };
    tmoei_asked asked;
    tmoei_texts texts, source;
    double *scores = NULL;
    TMOEI_TRY(tmoei_one_of_both(model, "score_answers", task_name, instruction));
    if (count < 0 || (count > 0 && (!answers || !log_likelihoods)) || !model->tokenizer)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "score_answers: %d answers; at least 0, a model with a tokenizer, and no argument NULL",
            count);
    if (count == 0) return TMOE_OK;
    memset(&texts, 0, sizeof texts);
    memset(&source, 0, sizeof source);

    const tmoei_float_mode mode = tmoei_float_mode_enter();
    if (tmoei_ask(model, &question, &asked) == TMOE_OK)
        scores = (double *)tmoei_own(&asked.own, (size_t)count, sizeof *scores);
    for (int i = 0; i < count && ctx->error == TMOE_OK; i++)
        (void)tmoei_texts_add(model, &texts, NULL, answers[i], c->target_tokens, "answer",
            asked.name, i);
    if (ctx->error == TMOE_OK
        && tmoei_texts_add(model, &source, asked.prefix, input, c->source_tokens, "input",
               asked.name, 0)
            == TMOE_OK
        && tmoei_log_likelihoods(model, &asked.guide, &source, &texts, scores) == TMOE_OK)
        for (int i = 0; i < count; i++) log_likelihoods[i] = (float)scores[i];
    tmoei_owner_free(&asked.own);
    tmoei_texts_free(ctx, &source);
    tmoei_texts_free(ctx, &texts);
    tmoei_float_mode_leave(mode);
    return ctx->error;
}

/* #################################################################################################
 * BOOK III: THE WORLD
 *
 * What lies around the method: formats of others, read strictly; folders of tasks; scores;
 * checkpoints. It offers you:
 *   formats      JSON and safetensors (>>json, >>safetensors), tokenizers (>>tokenizer)
 *   tasks        folders of tab-separated or JSON lines, splits, labels (>>suite)
 *   one call     from a folder of tasks to a trained model (>>onecall)
 *   scores       CrossFit's metrics, gains over a base with their intervals (>>metrics)
 *   readings     correlation of routes with features of tasks, clusters of tasks (>>routes)
 *   adaptation   to a new task from a few lines; task vectors that a model makes (>>fewshot)
 *   files        models and checkpoints (>>files), Hugging Face's BART, both ways (>>bart)
 * ############################################################################################## */

/* ==== >>settings: fields of tmoe_config and tmoe_training by their names =========================
 * The tables of fields (>>model, >>training) that check and save them serve here as well. */

#define TMOEI_NUMBER_BYTES 32

/* `text` with a point, which becomes the locale's: strtod wants that. */
static double tmoei_strtod(char *text, char **end)
{
    char *point = strchr(text, '.'), half[16];
    if (point && snprintf(half, sizeof half, "%.1f", 0.5) == 3) *point = half[1];
    return strtod(text, end);
}

/* x with so many digits, and with a point whatever the locale says, into text
 * (TMOEI_NUMBER_BYTES). */
static void tmoei_print_number(char *text, double x, int digits)
{
    (void)snprintf(text, TMOEI_NUMBER_BYTES, "%.*g", digits, x);
    for (char *c = text; *c; c++)
        if (!strchr("+-0123456789einfa", *c)) *c = '.';
}

/* The seeds have 64 bits, and so are in no table. */
static const char tmoei_seed_name[] = "seed";

typedef struct tmoei_settings_of {
    const tmoei_field *fields;
    size_t count;
    size_t seed; /* its offset */
} tmoei_settings_of;

static const tmoei_settings_of tmoei_all_settings[] = { /* by tmoe_settings */
    { tmoei_config_fields, TMOEI_CONFIG_FIELDS, offsetof(tmoe_config, seed) },
    { tmoei_training_fields, TMOEI_TRAINING_FIELDS, offsetof(tmoe_training, seed) }
};

static const tmoei_field *tmoei_setting_find(tmoe_settings of, const char *name)
{
    const tmoei_settings_of *s = &tmoei_all_settings[of];
    for (const tmoei_field *f = s->fields; f < s->fields + s->count; f++)
        if (strcmp(f->name, name) == 0) return f;
    return NULL;
}

/* The length of the word that begins at `text`. */
static size_t tmoei_word_length(const char *text)
{
    return strcspn(text, " |");
}

/* Which of the words is text[0 .. length - 1]; -1: none. */
static int tmoei_word_index(const char *words, const char *text, size_t length)
{
    for (int i = 0; *words; i++) {
        const size_t n = tmoei_word_length(words);
        if (n == length && memcmp(words, text, n) == 0) return i;
        words += n + (words[n] == ' ');
    }
    return -1;
}

/* The words of a value joined by '|' as bits; -1: one is unknown. */
static double tmoei_bits_of_words(const char *words, const char *text)
{
    int bits = 0;
    if (strcmp(text, "none") == 0) return 0.0;
    for (;;) {
        const size_t n = tmoei_word_length(text);
        const int index = tmoei_word_index(words, text, n);
        if (index < 0) return -1.0;
        bits |= 1 << index;
        if (text[n] != '|') return text[n] ? -1.0 : (double)bits;
        text += n + 1;
    }
}

/* The value of a text; NaN, which no range holds, if it is none. */
static double tmoei_setting_value(const tmoei_field *f, const char *text)
{
    char copy[64], *end = copy;
    const size_t length = strlen(text);
    if (f->words && !strpbrk(text, "0123456789")) {
        if (*f->words == '|') return tmoei_bits_of_words(f->words + 1, text);
        const int index = tmoei_word_index(f->words, text, length);
        return index < 0 ? (double)NAN : f->least + (double)index;
    }
    if (length == 0 || length >= sizeof copy || strspn(text, "+-.0123456789eE") != length)
        return (double)NAN;
    memcpy(copy, text, length + 1);
    const double x = tmoei_strtod(copy, &end);
    return *end ? (double)NAN : x;
}

/* Decimal digits as 64 bits; returns whether they are. */
static int tmoei_seed_of(const char *text, uint64_t *seed)
{
    uint64_t x = 0;
    if (!*text) return 0;
    for (; *text; text++) {
        const uint64_t digit = (uint64_t)(*text - '0');
        if (*text < '0' || *text > '9' || x > (UINT64_MAX - digit) / 10) return 0;
        x = x * 10 + digit;
    }
    *seed = x;
    return 1;
}

static tmoe_result tmoei_setting_set(tmoe_settings of, void *base, const char *name,
    const char *value)
{
    if (!name || !value) return TMOE_ERR_ARGUMENT;
    if (strcmp(name, tmoei_seed_name) == 0) {
        void *seed = (char *)base + tmoei_all_settings[of].seed;
        return tmoei_seed_of(value, (uint64_t *)seed) ? TMOE_OK : TMOE_ERR_CONFIG;
    }
    const tmoei_field *f = tmoei_setting_find(of, name);
    if (!f) return TMOE_ERR_ARGUMENT;
    return tmoei_field_set(base, f, tmoei_setting_value(f, value)) ? TMOE_OK : TMOE_ERR_CONFIG;
}

TMOE_DEF tmoe_result tmoe_config_set(tmoe_config *config, const char *name, const char *value)
{
    return tmoei_setting_set(TMOE_SETTINGS_CONFIG, config, name, value);
}

TMOE_DEF tmoe_result tmoe_training_set(tmoe_training *training, const char *name, const char *value)
{
    return tmoei_setting_set(TMOE_SETTINGS_TRAINING, training, name, value);
}

TMOE_DEF void tmoe_training_set_progress(tmoe_training *training,
    int (*progress)(void *user, const tmoe_progress *progress), void *user)
{
    training->progress = progress;
    training->progress_user = user;
}

/* Appends to text (size), as far as there is room, and counts all of it in *length. */
static void tmoei_append(char *text, size_t size, size_t *length, const char *more, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (*length + 1 < size) text[*length] = more[i];
        ++*length;
    }
    if (size > 0) text[tmoei_least_size(*length, size - 1)] = 0;
}

/* Those of the words that `bits` has, with `between` between them. */
static void tmoei_append_words(char *text, size_t size, size_t *length, const char *words, int bits,
    const char *between)
{
    const char *before = "";
    for (int i = 0; *words; i++) {
        const size_t n = tmoei_word_length(words);
        if (bits >> i & 1) {
            tmoei_append(text, size, length, before, strlen(before));
            tmoei_append(text, size, length, words, n);
            before = between;
        }
        words += n + (words[n] == ' ');
    }
}

/* The shortest number that reads back as the same float. */
static void tmoei_print_float(char *text, double x)
{
    for (int digits = 6; digits <= 9; digits++) {
        char copy[TMOEI_NUMBER_BYTES];
        tmoei_print_number(text, x, digits);
        memcpy(copy, text, sizeof copy);
        if ((float)tmoei_strtod(copy, NULL) == (float)x) return;
    }
}

static tmoe_result tmoei_setting_get(tmoe_settings of, const void *base, const char *name,
    char *text, size_t size)
{
    char number[TMOEI_NUMBER_BYTES];
    size_t length = 0;
    if (!name || (!text && size > 0)) return TMOE_ERR_ARGUMENT;
    const tmoei_field *f = tmoei_setting_find(of, name);
    if (!f && strcmp(name, tmoei_seed_name) != 0) return TMOE_ERR_ARGUMENT;

    const double x = f ? tmoei_field_value(base, f) : 0.0;
    const int sound = f && x >= f->least && x <= f->most;
    if (sound && f->words && *f->words == '|' && x > 0.0) {
        tmoei_append_words(text, size, &length, f->words + 1, (int)x, "|");
    } else if (sound && f->words && *f->words == '|') {
        tmoei_append(text, size, &length, "none", 4);
    } else if (sound && f->words) {
        tmoei_append_words(text, size, &length, f->words, 1 << (int)(x - f->least), "");
    } else {
        const void *seed = (const char *)base + tmoei_all_settings[of].seed;
        if (f && f->kind == TMOEI_KIND_FLOAT)
            tmoei_print_float(number, x);
        else if (f)
            (void)snprintf(number, sizeof number, "%.0f", x);
        else
            (void)snprintf(number, sizeof number, "%llu",
                (unsigned long long)*(const uint64_t *)seed);
        tmoei_append(text, size, &length, number, strlen(number));
    }
    return length < size ? TMOE_OK : TMOE_ERR_ARGUMENT;
}

TMOE_DEF tmoe_result tmoe_config_get(const tmoe_config *config, const char *name, char *text,
    size_t size)
{
    return tmoei_setting_get(TMOE_SETTINGS_CONFIG, config, name, text, size);
}

TMOE_DEF tmoe_result tmoe_training_get(const tmoe_training *training, const char *name, char *text,
    size_t size)
{
    return tmoei_setting_get(TMOE_SETTINGS_TRAINING, training, name, text, size);
}

TMOE_DEF const char *tmoe_setting_name(tmoe_settings of, int i)
{
    if ((unsigned)of > (unsigned)TMOE_SETTINGS_TRAINING || i < 0) return NULL;
    const tmoei_settings_of *s = &tmoei_all_settings[of];
    if ((size_t)i < s->count) return s->fields[i].name;
    return (size_t)i == s->count ? tmoei_seed_name : NULL;
}

TMOE_DEF tmoe_result tmoe_setting_values(tmoe_settings of, const char *name, char *text,
    size_t size)
{
    static const char whole[] = "a whole number, ";
    char number[TMOEI_NUMBER_BYTES];
    size_t length = 0;
    if ((unsigned)of > (unsigned)TMOE_SETTINGS_TRAINING || !name || (!text && size > 0))
        return TMOE_ERR_ARGUMENT;
    const tmoei_field *f = tmoei_setting_find(of, name);
    if (!f && strcmp(name, tmoei_seed_name) != 0) return TMOE_ERR_ARGUMENT;

    if (f && f->words) {
        const int bits = *f->words == '|';
        if (bits) tmoei_append(text, size, &length, "none, or some of ", 17);
        tmoei_append_words(text, size, &length, f->words + bits, -1, bits ? "|" : ", ");
        return length < size ? TMOE_OK : TMOE_ERR_ARGUMENT;
    }
    if (!f || f->kind == TMOEI_KIND_INT) tmoei_append(text, size, &length, whole, sizeof whole - 1);
    tmoei_print_number(number, f ? f->least : 0.0, 7);
    tmoei_append(text, size, &length, number, strlen(number));
    if (!f || f->most >= (double)INT_MAX) {
        tmoei_append(text, size, &length, " or more", 8);
    } else {
        tmoei_print_number(number, f->most, 7);
        tmoei_append(text, size, &length, " to ", 4);
        tmoei_append(text, size, &length, number, strlen(number));
    }
    return length < size ? TMOE_OK : TMOE_ERR_ARGUMENT;
}

/* ==== >>json: a strict reader (RFC 8259), and what is written as JSON ============================
 * A text becomes an array of nodes: node 0 is the root, an array or object names its first child,
 * each child its next sibling. What RFC 8259 does not allow is refused with line and column, and so
 * are invalid UTF-8 and lone surrogates. */

#ifndef TMOE_NO_STDIO /* only files hold JSON */

#define TMOEI_BAD_FORMAT(ctx, ...) tmoei_fail(ctx, TMOE_ERR_FORMAT, __VA_ARGS__)

/* ---- writing ---- */

static TMOEI_PRINTF(3, 4) void tmoei_buffer_print(tmoe_ctx *ctx, tmoei_buffer *buffer,
    const char *format, ...)
{
    char text[512]; /* numbers and short names only */
    va_list arguments;
    va_start(arguments, format);
    const int n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);

    if (n > 0) tmoei_buffer_add(ctx, buffer, text, strlen(text));
}

/* Nine digits, which read back as the same float, and a point whatever the locale says. */
static void tmoei_buffer_json_number(tmoe_ctx *ctx, tmoei_buffer *buffer, double x)
{
    char text[TMOEI_NUMBER_BYTES];
    tmoei_print_number(text, x, 9);
    tmoei_buffer_add(ctx, buffer, text, strlen(text));
}

static void tmoei_buffer_json_text(tmoe_ctx *ctx, tmoei_buffer *buffer, const char *text,
    size_t length)
{
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') tmoei_buffer_add(ctx, buffer, "\\", 1);
        if (c < 0x20)
            tmoei_buffer_print(ctx, buffer, "\\u%04x", (unsigned)c);
        else
            tmoei_buffer_add(ctx, buffer, text + i, 1);
    }
}

static void tmoei_buffer_json_string(tmoe_ctx *ctx, tmoei_buffer *buffer, const char *text,
    size_t length)
{
    tmoei_buffer_add(ctx, buffer, "\"", 1);
    tmoei_buffer_json_text(ctx, buffer, text, length);
    tmoei_buffer_add(ctx, buffer, "\"", 1);
}

/* ---- reading ---- */

#define TMOEI_JSON_DEPTH 64 /* nested arrays and objects; bounds the recursion */

typedef enum tmoei_json_kind {
    TMOEI_JSON_NULL,
    TMOEI_JSON_FALSE,
    TMOEI_JSON_TRUE,
    TMOEI_JSON_NUMBER,
    TMOEI_JSON_STRING,
    TMOEI_JSON_ARRAY,
    TMOEI_JSON_OBJECT
} tmoei_json_kind;

typedef struct tmoei_json_node {
    tmoei_json_kind kind;
    const char *text, *key; /* value of a string, key of an object's member; a NUL follows each */
    size_t length, key_length;
    double number;
    int digits_only; /* a number without sign, fraction and exponent */
    int child, next; /* first child, next sibling; -1: none */
    int count;       /* children */
} tmoei_json_node;

typedef struct tmoei_json {
    tmoei_json_node *nodes; /* node 0 is the root */
    size_t capacity;
    int count;
    char *strings;    /* all strings, unescaped: together never longer than the text */
    const char *name; /* for messages; the caller's */
} tmoei_json;

typedef struct tmoei_json_reader {
    tmoe_ctx *ctx;
    tmoei_json *json;
    const char *text;
    size_t length, at, used; /* used: bytes of json->strings */
} tmoei_json_reader;

static tmoe_result tmoei_json_error(const tmoei_json_reader *r, const char *what)
{
    unsigned long line = 1, column = 1;
    for (size_t i = 0; i < r->at && i < r->length; i++) {
        column++;
        if (r->text[i] == '\n') {
            line++;
            column = 1;
        }
    }
    return tmoei_fail(r->ctx, TMOE_ERR_FORMAT, "%s:%lu:%lu: JSON: %s", r->json->name, line, column,
        what);
}

/* The next character; -1 at the end. */
static int tmoei_json_peek(const tmoei_json_reader *r)
{
    return r->at < r->length ? (unsigned char)r->text[r->at] : -1;
}

/* Steps over the next character if it is c; returns whether it was. */
static int tmoei_json_take(tmoei_json_reader *r, int c)
{
    if (tmoei_json_peek(r) != c) return 0;
    r->at++;
    return 1;
}

/* Steps over characters of a set; returns their number. */
static size_t tmoei_json_skip(tmoei_json_reader *r, const char *set)
{
    const size_t from = r->at;
    while (tmoei_json_peek(r) > 0 && strchr(set, tmoei_json_peek(r))) r->at++;
    return r->at - from;
}

static size_t tmoei_json_digits(tmoei_json_reader *r)
{
    return tmoei_json_skip(r, "0123456789");
}

static void tmoei_json_space(tmoei_json_reader *r)
{
    (void)tmoei_json_skip(r, " \t\n\r");
}

/* tmoei_json_take behind white space. */
static int tmoei_json_mark(tmoei_json_reader *r, int c)
{
    tmoei_json_space(r);
    return tmoei_json_take(r, c);
}

/* The value of the next four hex digits; -1 when there are fewer. */
static long tmoei_json_hex4(tmoei_json_reader *r)
{
    char digits[5] = { 0, 0, 0, 0, 0 };
    if (r->length - r->at < 4) return -1;
    memcpy(digits, r->text + r->at, 4);
    if (strspn(digits, "0123456789abcdefABCDEF") < 4) return -1;
    r->at += 4;
    return strtol(digits, NULL, 16);
}

/* Reads an escape behind its backslash into out. A code point above U+FFFF is two escapes:
 * 0x10000 + (high - 0xd800) * 1024 + (low - 0xdc00). */
static tmoe_result tmoei_json_escape(tmoei_json_reader *r, char *out, size_t *bytes)
{
    static const char letters[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const int c = tmoei_json_peek(r);
    const char *known = c > 0 ? strchr(letters, c) : NULL;
    if (known) {
        r->at++;
        out[0] = values[known - letters];
        *bytes = 1;
        return TMOE_OK;
    }
    if (!tmoei_json_take(r, 'u')) return tmoei_json_error(r, "an unknown escape");

    long code = tmoei_json_hex4(r);
    if (code < 0) return tmoei_json_error(r, "\\u needs four hex digits");
    if (code >= 0xdc00 && code <= 0xdfff)
        return tmoei_json_error(r, "a low surrogate without its high one");
    if (code >= 0xd800 && code <= 0xdbff) {
        const int follows = tmoei_json_take(r, '\\') && tmoei_json_take(r, 'u');
        const long low = follows ? tmoei_json_hex4(r) : -1;
        if (low < 0xdc00 || low > 0xdfff)
            return tmoei_json_error(r, "a high surrogate without its low one");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    *bytes = tmoei_utf8_put((uint32_t)code, out);
    return TMOE_OK;
}

/* Reads a string behind its opening quote into json->strings. */
static tmoe_result tmoei_json_string(tmoei_json_reader *r, const char **text, size_t *length)
{
    char *out = r->json->strings + r->used;
    size_t n = 0;
    while (!tmoei_json_take(r, '"')) {
        const int c = tmoei_json_peek(r);
        uint32_t code;
        size_t bytes = 0;
        if (c < 0) return tmoei_json_error(r, "a string without its closing quote");
        if (c < 0x20) return tmoei_json_error(r, "a control character inside a string");
        if (tmoei_json_take(r, '\\')) {
            TMOEI_TRY(tmoei_json_escape(r, out + n, &bytes));
        } else {
            bytes = tmoei_utf8_next(r->text, r->length, r->at, &code);
            if (!bytes) return tmoei_json_error(r, "invalid UTF-8");
            memcpy(out + n, r->text + r->at, bytes);
            r->at += bytes;
        }
        n += bytes;
    }
    out[n] = 0;
    r->used += n + 1;
    *text = out;
    *length = n;
    return TMOE_OK;
}

/* null, false, true or a number: [-] (0 | digits) [. digits] [(e | E) [+ | -] digits] */
static tmoe_result tmoei_json_plain(tmoei_json_reader *r, tmoei_json_node *node)
{
    static const char *const words[] = { "null", "false", "true" }; /* by their kinds */
    const size_t begin = r->at;
    for (int kind = TMOEI_JSON_NULL; kind <= TMOEI_JSON_TRUE; kind++) {
        const size_t n = strlen(words[kind]);
        if (r->length - begin < n || memcmp(r->text + begin, words[kind], n) != 0) continue;
        r->at += n;
        node->kind = (tmoei_json_kind)kind;
        return TMOE_OK;
    }

    const int negative = tmoei_json_take(r, '-');
    if (!tmoei_json_take(r, '0') && !tmoei_json_digits(r)) /* no digit follows a leading 0 */
        return tmoei_json_error(r, "a value was expected");
    const size_t whole = r->at;

    if (tmoei_json_take(r, '.') && !tmoei_json_digits(r))
        return tmoei_json_error(r, "a digit was expected");
    if (tmoei_json_take(r, 'e') || tmoei_json_take(r, 'E')) {
        if (!tmoei_json_take(r, '+')) (void)tmoei_json_take(r, '-');
        if (!tmoei_json_digits(r)) return tmoei_json_error(r, "a digit was expected");
    }

    char *copy = r->json->strings + r->used; /* strtod needs a NUL; the next string overwrites it */
    memcpy(copy, r->text + begin, r->at - begin);
    copy[r->at - begin] = 0;
    node->kind = TMOEI_JSON_NUMBER;
    node->number = tmoei_strtod(copy, NULL);
    node->digits_only = !negative && r->at == whole;
    return TMOE_OK;
}

static void tmoei_json_free(tmoe_ctx *ctx, tmoei_json *json)
{
    tmoei_free(ctx, json->nodes);
    tmoei_free(ctx, json->strings);
    memset(json, 0, sizeof *json);
}

static tmoe_result tmoei_json_element(tmoei_json_reader *r, int depth);

/* The values of an array or object, from behind its opening bracket. Nodes are named by index: the
 * array moves when it grows. */
static tmoe_result tmoei_json_members(tmoei_json_reader *r, int parent, int depth)
{
    tmoei_json *json = r->json;
    const int object = json->nodes[parent].kind == TMOEI_JSON_OBJECT;
    const int closing = object ? '}' : ']';
    int last = -1;
    if (tmoei_json_mark(r, closing)) return TMOE_OK;
    if (depth == TMOEI_JSON_DEPTH) return tmoei_json_error(r, "nested too deep");

    do {
        const int child = json->count;
        const char *key = NULL;
        size_t key_length = 0;
        if (object) {
            if (!tmoei_json_mark(r, '"')) return tmoei_json_error(r, "a key was expected");
            TMOEI_TRY(tmoei_json_string(r, &key, &key_length));
            if (!tmoei_json_mark(r, ':')) return tmoei_json_error(r, "':' was expected");
        }
        TMOEI_TRY(tmoei_json_element(r, depth + 1));
        json->nodes[child].key = key;
        json->nodes[child].key_length = key_length;
        if (last < 0)
            json->nodes[parent].child = child;
        else
            json->nodes[last].next = child;
        json->nodes[parent].count++;
        last = child;
    } while (tmoei_json_mark(r, ','));

    if (tmoei_json_take(r, closing)) return TMOE_OK;
    return tmoei_json_error(r, "',' or the closing bracket was expected");
}

/* One value with all that is in it; its node is the next one. */
static tmoe_result tmoei_json_element(tmoei_json_reader *r, int depth)
{
    tmoei_json *json = r->json;
    tmoei_json_node node;
    memset(&node, 0, sizeof node);
    node.child = -1;
    node.next = -1;

    tmoei_json_space(r);
    if (r->at == r->length) return tmoei_json_error(r, "the text ends where a value was expected");
    if (tmoei_json_take(r, '"')) {
        node.kind = TMOEI_JSON_STRING;
        TMOEI_TRY(tmoei_json_string(r, &node.text, &node.length));
    } else if (tmoei_json_take(r, '[')) {
        node.kind = TMOEI_JSON_ARRAY;
    } else if (tmoei_json_take(r, '{')) {
        node.kind = TMOEI_JSON_OBJECT;
    } else {
        TMOEI_TRY(tmoei_json_plain(r, &node));
    }

    const int index = json->count;
    if (!tmoei_grow(r->ctx, &json->nodes, &json->capacity, (size_t)index + 1, sizeof node))
        return TMOE_ERR_MEMORY;
    json->nodes[index] = node;
    json->count++;
    if (node.kind < TMOEI_JSON_ARRAY) return TMOE_OK;
    return tmoei_json_members(r, index, depth);
}

/* Parses a whole text of at most TMOEI_DATA_FILE_MAX bytes. On failure json is empty. */
static tmoe_result tmoei_json_parse(tmoe_ctx *ctx, tmoei_json *json, const char *text,
    size_t length, const char *name)
{
    tmoei_json_reader r;
    memset(json, 0, sizeof *json);
    json->name = name;
    memset(&r, 0, sizeof r);
    r.ctx = ctx;
    r.json = json;
    r.text = text;
    r.length = length;

    /* A string loses its quotes and gains a NUL, as does a number. */
    json->strings = (char *)tmoei_alloc(ctx, length + 1, 1, 0);
    if (!json->strings) return TMOE_ERR_MEMORY;
    tmoe_result result = tmoei_json_element(&r, 0);
    tmoei_json_space(&r);
    if (result == TMOE_OK && r.at < length)
        result = tmoei_json_error(&r, "something follows the value");
    if (result != TMOE_OK) tmoei_json_free(ctx, json);
    return result;
}

/* ---- looking things up ---- */

/* The node with this index; for -1 a null without a key, a text or children. */
static const tmoei_json_node *tmoei_json_at(const tmoei_json *json, int node)
{
    static const tmoei_json_node nothing = { TMOEI_JSON_NULL, "", "", 0, 0, 0.0, 0, -1, -1, 0 };
    return node < 0 ? &nothing : &json->nodes[node];
}

/* The index of a key's value, or -1; the last one's where a key occurs twice, as in Python. */
static int tmoei_json_get(const tmoei_json *json, int object, const char *key)
{
    const tmoei_json_node *parent = tmoei_json_at(json, object);
    const size_t length = strlen(key);
    int found = -1;
    if (parent->kind != TMOEI_JSON_OBJECT) return -1;
    for (int i = parent->child; i >= 0; i = json->nodes[i].next)
        if (json->nodes[i].key_length == length && memcmp(json->nodes[i].key, key, length) == 0)
            found = i;
    return found;
}

static const tmoei_json_node *tmoei_json_value(const tmoei_json *json, int object, const char *key)
{
    return tmoei_json_at(json, tmoei_json_get(json, object, key));
}

/* A string without a NUL inside. */
static int tmoei_json_is_string(const tmoei_json *json, int node)
{
    const tmoei_json_node *n = tmoei_json_at(json, node);
    return n->kind == TMOEI_JSON_STRING && strlen(n->text) == n->length;
}

static int tmoei_json_true(const tmoei_json *json, int object, const char *key)
{
    return tmoei_json_value(json, object, key)->kind == TMOEI_JSON_TRUE;
}

static int tmoei_json_says(const tmoei_json_node *node, const char *text)
{
    return node->kind == TMOEI_JSON_STRING && node->length == strlen(text)
        && strcmp(node->text, text) == 0;
}

/* A number of digits alone, up to 2^53 and what a size_t holds, into *out; else returns 0. */
static int tmoei_json_size(const tmoei_json *json, int node, size_t *out)
{
    const tmoei_json_node *n = tmoei_json_at(json, node);
    const double exact = 9007199254740992.0; /* 2^53: every whole number up to it is a double */
    if (!n->digits_only || n->number > exact || n->number > (double)((size_t)-1 / 2)) return 0;
    *out = (size_t)n->number;
    return 1;
}

static tmoe_result tmoei_json_read(tmoe_ctx *ctx, tmoei_json *json, const char *path)
{
    size_t length;
    memset(json, 0, sizeof *json);
    char *text = tmoei_read_file(ctx, path, TMOEI_DATA_FILE_MAX, &length);
    if (!text) return ctx->error;
    const size_t mark = tmoei_byte_order_mark(text, length);
    (void)tmoei_json_parse(ctx, json, text + mark, length - mark, path);
    tmoei_free(ctx, text);
    return ctx->error;
}

/* The object in a file of a folder; its path into `path`. Empty if an optional file is absent. */
static tmoe_result tmoei_json_file(tmoe_ctx *ctx, tmoei_json *json, char *path, const char *folder,
    const char *name, int optional)
{
    memset(json, 0, sizeof *json);
    if (!tmoei_folder_has(ctx, path, folder, name) && (optional || ctx->error != TMOE_OK))
        return ctx->error;
    TMOEI_TRY(tmoei_json_read(ctx, json, path));
    if (json->nodes[0].kind != TMOEI_JSON_OBJECT)
        TMOEI_BAD_FORMAT(ctx, "%s: must be a JSON object", path);
    return ctx->error;
}

/* ==== >>safetensors: the one file format of tensors; numpy's .npy ================================
 *   8 bytes   length of the header, little-endian
 *   header    JSON  {"__metadata__": {"key": "text", ...},
 *                    "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
 *   data      the tensors' values, little-endian, row-major; offsets count from its first byte
 * A file is checked as a whole before anything of it is used. */

typedef enum tmoei_dtype { /* the first three can be read as floats */
    TMOEI_F32,
    TMOEI_F16,
    TMOEI_BF16
} tmoei_dtype;

typedef struct tmoei_dtype_info {
    const char *name;
    size_t bytes;
} tmoei_dtype_info;

static const tmoei_dtype_info tmoei_dtypes[] = { { "F32", 4 }, { "F16", 2 }, { "BF16", 2 },
    { "F64", 8 }, { "C64", 8 }, { "I64", 8 }, { "U64", 8 }, { "I32", 4 }, { "U32", 4 },
    { "I16", 2 }, { "U16", 2 }, { "I8", 1 }, { "U8", 1 }, { "BOOL", 1 }, { "F8_E4M3", 1 },
    { "F8_E5M2", 1 }, { "F8_E8M0", 1 } };

#define TMOEI_DTYPES ((int)(sizeof tmoei_dtypes / sizeof *tmoei_dtypes))
#define TMOEI_HEADER_MAX 100000000 /* bytes; the reference implementation's limit */

typedef struct tmoei_entry {
    const char *name; /* in the JSON's memory */
    int dtype;        /* index in tmoei_dtypes */
    int rank;
    size_t count, cols; /* values in all; the last dimension, 1 without any */
    size_t begin, end;  /* its bytes in the data */
} tmoei_entry;

typedef struct tmoei_safetensors {
    char *path, *bytes;
    const unsigned char *data;
    size_t size, data_size;
    int mapped;      /* bytes are the file's pages, private: what is written stays here */
    tmoei_owner own; /* of path and entries */
    tmoei_json json;
    tmoei_entry *entries; /* sorted by name */
    int count;
} tmoei_safetensors;

static void tmoei_safetensors_close(tmoe_ctx *ctx, tmoei_safetensors *file)
{
    tmoei_json_free(ctx, &file->json);
    if (file->mapped)
        tmoei_unmap(file->bytes, file->size);
    else
        tmoei_free(ctx, file->bytes);
    tmoei_owner_free(&file->own);
    memset(file, 0, sizeof *file);
}

static int tmoei_entry_by_name(const void *a, const void *b)
{
    return strcmp(((const tmoei_entry *)a)->name, ((const tmoei_entry *)b)->name);
}

/* By first byte; an empty tensor comes before the one that begins where it lies. */
static int tmoei_entry_by_place(const void *a, const void *b)
{
    const tmoei_entry *x = (const tmoei_entry *)a;
    const tmoei_entry *y = (const tmoei_entry *)b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* The value of a key that occurs exactly once, else NULL. */
static const tmoei_json_node *tmoei_json_once(const tmoei_json *json, int object, const char *key)
{
    const int last = tmoei_json_get(json, object, key);
    for (int i = json->nodes[object].child; i >= 0 && i != last; i = json->nodes[i].next)
        if (strcmp(json->nodes[i].key, key) == 0) return NULL;
    return last < 0 ? NULL : &json->nodes[last];
}

/* Reads a tensor's entry of the header into *e. Returns the rule that it breaks, or NULL. */
static const char *tmoei_entry_read(const tmoei_safetensors *file, int node, tmoei_entry *e)
{
    const tmoei_json *json = &file->json;
    const tmoei_json_node *n = &json->nodes[node];
    if (strlen(n->key) != n->key_length) return "its name has a NUL inside";
    if (n->kind != TMOEI_JSON_OBJECT) return "must be an object";
    const tmoei_json_node *dtype = tmoei_json_once(json, node, "dtype");
    const tmoei_json_node *shape = tmoei_json_once(json, node, "shape");
    const tmoei_json_node *offsets = tmoei_json_once(json, node, "data_offsets");
    if (!dtype || !shape || !offsets) /* further keys are ignored */
        return "must have dtype, shape and data_offsets, each once";

    e->name = n->key;
    while (e->dtype < TMOEI_DTYPES && !tmoei_json_says(dtype, tmoei_dtypes[e->dtype].name))
        e->dtype++;
    if (e->dtype == TMOEI_DTYPES) return "its dtype is unknown";

    if (shape->kind != TMOEI_JSON_ARRAY) return "shape must be a list";
    e->count = 1;
    e->cols = 1;
    e->rank = shape->count;
    for (int i = shape->child; i >= 0; i = json->nodes[i].next)
        if (!tmoei_json_size(json, i, &e->cols) || !tmoei_size(&e->count, e->count, e->cols, 0))
            return "shape must hold sizes that fit into memory";

    if (offsets->kind != TMOEI_JSON_ARRAY || offsets->count != 2
        || !tmoei_json_size(json, offsets->child, &e->begin)
        || !tmoei_json_size(json, json->nodes[offsets->child].next, &e->end) || e->end < e->begin
        || e->end > file->data_size)
        return "data_offsets must be two places inside the data";
    size_t bytes;
    if (!tmoei_size(&bytes, e->count, tmoei_dtypes[e->dtype].bytes, 0)
        || bytes != e->end - e->begin)
        return "shape and data_offsets must be of equal bytes";
    return NULL;
}

/* n bytes as a number, the lowest first. */
static uint64_t tmoei_little(const unsigned char *bytes, size_t n)
{
    uint64_t x = 0;
    while (n > 0) {
        n--;
        x = x << 8 | bytes[n];
    }
    return x;
}

static int tmoei_metadata_sound(const tmoei_json *json, int node)
{
    const tmoei_json_node *metadata = &json->nodes[node];
    if (tmoei_json_once(json, 0, "__metadata__") != metadata) return 0;
    if (metadata->kind == TMOEI_JSON_NULL) return 1;
    for (int i = metadata->child; i >= 0; i = json->nodes[i].next)
        if (json->nodes[i].kind != TMOEI_JSON_STRING) return 0;
    return metadata->kind == TMOEI_JSON_OBJECT;
}

/* Reads the header's members. Returns the rule that one breaks, and its name in *name, or NULL. */
static const char *tmoei_safetensors_entries(tmoei_safetensors *file, const char **name)
{
    const tmoei_json_node *nodes = file->json.nodes;
    for (int i = nodes[0].child; i >= 0; i = nodes[i].next) {
        const char *wrong = NULL;
        *name = nodes[i].key;
        if (strcmp(*name, "__metadata__") != 0)
            wrong = tmoei_entry_read(file, i, &file->entries[file->count++]);
        else if (!tmoei_metadata_sound(&file->json, i))
            wrong = "must be one object of strings";
        if (wrong) return wrong;
    }
    return NULL;
}

/* The tensors cover the data without overlap and hole, and have different names. Sorts them by
 * name. Returns the rule that one breaks, and its name in *name, or NULL. */
static const char *tmoei_safetensors_cover(tmoei_safetensors *file, const char **name)
{
    tmoei_entry *e = file->entries;
    size_t at = 0;
    qsort(e, (size_t)file->count, sizeof *e, tmoei_entry_by_place);
    for (int i = 0; i < file->count; i++) {
        *name = e[i].name;
        if (e[i].begin != at) return "must begin where the tensor before it ends";
        at = e[i].end;
    }
    if (at != file->data_size) return "must end where the data end";

    qsort(e, (size_t)file->count, sizeof *e, tmoei_entry_by_name);
    for (int i = 1; i < file->count; i++) {
        *name = e[i].name;
        if (strcmp(e[i - 1].name, *name) == 0) return "two tensors have this name";
    }
    return NULL;
}

static tmoe_result tmoei_safetensors_check(tmoe_ctx *ctx, tmoei_safetensors *file)
{
    const unsigned char *bytes = (const unsigned char *)file->bytes;
    const uint64_t header = file->size < 8 ? 0 : tmoei_little(bytes, 8);
    if (file->size < 8 || header > TMOEI_HEADER_MAX || header > file->size - 8)
        return TMOEI_BAD_FORMAT(ctx, "%s: not a safetensors file, or cut off", file->path);
    file->data = bytes + 8 + header;
    file->data_size = file->size - 8 - (size_t)header;
    TMOEI_TRY(tmoei_json_parse(ctx, &file->json, file->bytes + 8, (size_t)header, file->path));
    const tmoei_json_node *root = &file->json.nodes[0];
    if (root->kind != TMOEI_JSON_OBJECT)
        return TMOEI_BAD_FORMAT(ctx, "%s: the header is not an object", file->path);
    file->entries =
        (tmoei_entry *)tmoei_own(&file->own, (size_t)root->count + 1, sizeof *file->entries);
    if (!file->entries) return TMOE_ERR_MEMORY;

    const char *name = "(none)";
    const char *wrong = tmoei_safetensors_entries(file, &name);
    if (!wrong) wrong = tmoei_safetensors_cover(file, &name);
    if (wrong) return TMOEI_BAD_FORMAT(ctx, "%s: %s: %s", file->path, name, wrong);
    return TMOE_OK;
}

static tmoe_result tmoei_safetensors_open(tmoe_ctx *ctx, tmoei_safetensors *file, const char *path)
{
    memset(file, 0, sizeof *file);
    file->own.ctx = ctx;
    file->path = tmoei_own_text(&file->own, path, strlen(path));
    if (file->path) file->bytes = tmoei_map_file(ctx, path, &file->size, &file->mapped);
    const tmoe_result result = file->bytes ? tmoei_safetensors_check(ctx, file) : ctx->error;
    if (result != TMOE_OK) tmoei_safetensors_close(ctx, file);
    return result;
}

static const tmoei_entry *tmoei_safetensors_find(const tmoei_safetensors *file, const char *name)
{
    tmoei_entry key;
    memset(&key, 0, sizeof key);
    key.name = name;
    return (const tmoei_entry *)bsearch(&key, file->entries, (size_t)file->count, sizeof key,
        tmoei_entry_by_name);
}

static const char *tmoei_safetensors_metadata(const tmoei_safetensors *file, const char *key)
{
    const int metadata = tmoei_json_get(&file->json, 0, "__metadata__");
    const int node = tmoei_json_get(&file->json, metadata, key);
    return tmoei_json_is_string(&file->json, node) ? file->json.nodes[node].text : NULL;
}

/* ---- numbers as bytes ---- */

static float tmoei_float_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static uint32_t tmoei_bits_of_float(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* IEEE half: sign, 5 bits of exponent with bias 15, 10 bits of fraction
 *   exponent 0     (-1)^sign 2^-24 fraction             zero and subnormal numbers
 *   exponent 31    infinity or NaN                      (a float's exponent is 255)
 *   else           (-1)^sign 2^(exponent - 15) 1.fraction   (a float's bias is 127 = 15 + 112) */
static float tmoei_half(uint32_t h)
{
    const uint32_t sign = (h & 0x8000u) << 16;
    const uint32_t exponent = h >> 10 & 31u;
    const uint32_t fraction = h & 1023u;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * ldexpf((float)fraction, -24);
    const uint32_t wider = exponent == 31 ? 255u : exponent + 112u;
    return tmoei_float_of_bits(sign | wider << 23 | fraction << 13);
}

static int tmoei_little_endian(void)
{
    const uint32_t one = 1;
    return *(const unsigned char *)&one == 1;
}

/* Values first .. first + count - 1, the last ones of a tensor, as floats. */
static tmoe_result tmoei_safetensors_read(tmoe_ctx *ctx, const tmoei_safetensors *file,
    const tmoei_entry *entry, size_t first, float *out, size_t count)
{
    const tmoei_dtype_info dtype = tmoei_dtypes[entry->dtype];
    if (entry->count != first + count || entry->dtype > TMOEI_BF16)
        return TMOEI_BAD_FORMAT(ctx, "%s: %s: %lu values of %s, not %lu floats", file->path,
            entry->name, (unsigned long)entry->count, dtype.name, (unsigned long)(first + count));

    const unsigned char *p = file->data + entry->begin + first * dtype.bytes;
    if (entry->dtype == TMOEI_F32 && tmoei_little_endian()) {
        memcpy(out, p, count * sizeof(float));
        return TMOE_OK;
    }
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)tmoei_little(p + i * dtype.bytes, dtype.bytes);
        if (entry->dtype == TMOEI_F32)
            out[i] = tmoei_float_of_bits(bits);
        else if (entry->dtype == TMOEI_F16)
            out[i] = tmoei_half(bits);
        else
            out[i] = tmoei_float_of_bits(bits << 16); /* BF16: the upper half of a float */
    }
    return TMOE_OK;
}

/* ---- writing ----
 * Metadata and tensors are declared, which makes the header; then all is written to a temporary
 * file beside the wanted one, flushed to the disk and renamed: whatever happens, the wanted name
 * holds the whole old file or the whole new one. */

typedef struct tmoei_span {
    const float *data;
    size_t zeros, count; /* zeros are written before the data */
} tmoei_span;

typedef struct tmoei_writer {
    tmoei_buffer json;      /* the header */
    tmoei_buffer temporary; /* name of the temporary file */
    const char *path;       /* the wanted name; the caller's */
    FILE *file;
    int trouble;       /* errno of the first write that failed */
    tmoei_span *spans; /* what the tensors hold; the caller's */
    size_t count, capacity;
    size_t declared; /* bytes of data */
} tmoei_writer;

/* Frees what the writer has; a temporary file that was not committed is removed. */
static void tmoei_writer_free(tmoe_ctx *ctx, tmoei_writer *writer)
{
    if (writer->file) {
        (void)fclose(writer->file);
        (void)remove(writer->temporary.data);
    }
    tmoei_buffer_free(ctx, &writer->json);
    tmoei_buffer_free(ctx, &writer->temporary);
    tmoei_free(ctx, writer->spans);
    memset(writer, 0, sizeof *writer);
}

/* All metadata are declared before the first tensor. */
static void tmoei_writer_metadata(tmoe_ctx *ctx, tmoei_writer *writer, const char *key,
    const char *text, size_t length)
{
    tmoei_buffer *json = &writer->json;
    tmoei_buffer_print(ctx, json, json->length ? "," : "{\"__metadata__\":{");
    tmoei_buffer_json_string(ctx, json, key, strlen(key));
    tmoei_buffer_add(ctx, json, ":", 1);
    tmoei_buffer_json_string(ctx, json, text, length);
}

/* Declares a tensor of `skip` rows of zeros and `rows` rows of data. */
static void tmoei_writer_tensor(tmoe_ctx *ctx, tmoei_writer *writer, const char *name, int rank,
    size_t skip, size_t rows, size_t cols, const float *data)
{
    const tmoei_span span = { data, skip * cols, rows * cols };
    tmoei_buffer *json = &writer->json;
    const size_t begin = writer->declared;
    const size_t end = begin + (span.zeros + span.count) * sizeof(float);
    if (!tmoei_grow(ctx, &writer->spans, &writer->capacity, writer->count + 1, sizeof span)) return;
    writer->spans[writer->count++] = span;
    writer->declared = end;

    tmoei_buffer_print(ctx, json, begin ? "," : "},"); /* } ends the metadata */
    tmoei_buffer_json_string(ctx, json, name, strlen(name));
    tmoei_buffer_print(ctx, json, ":{\"dtype\":\"F32\",\"shape\":[");
    if (rank == 2) tmoei_buffer_print(ctx, json, "%lu,", (unsigned long)(skip + rows));
    tmoei_buffer_print(ctx, json, "%lu],\"data_offsets\":[%lu,%lu]}", (unsigned long)cols,
        (unsigned long)begin, (unsigned long)end);
}

static tmoe_result tmoei_writer_trouble(tmoe_ctx *ctx, const tmoei_writer *writer)
{
    return tmoei_fail(ctx, TMOE_ERR_FILE, "%s: cannot be written: %s", writer->path,
        strerror(writer->trouble ? writer->trouble : errno));
}

#define TMOEI_TEMPORARY_NAMES 100

/* Opens a temporary file PATH.tmp; where that name is taken, PATH.1.tmp and so on. */
static tmoe_result tmoei_writer_open(tmoe_ctx *ctx, tmoei_writer *writer, const char *path)
{
    tmoei_buffer *name = &writer->temporary;
    writer->path = path;
#if defined(TMOEI_POSIX)
    struct stat about; /* a rename would put a file in the place of a device such as /dev/null */
    if (stat(path, &about) == 0 && !S_ISREG(about.st_mode))
        return tmoei_fail(ctx, TMOE_ERR_FILE, "%s: is not a file that could be replaced", path);
#endif
    errno = EEXIST;
    for (int i = 0; errno == EEXIST && i < TMOEI_TEMPORARY_NAMES; i++) {
        name->length = 0;
        tmoei_buffer_add(ctx, name, path, strlen(path));
        if (i) tmoei_buffer_print(ctx, name, ".%d", i);
        tmoei_buffer_add(ctx, name, ".tmp", 4);
        if (name->failed) return TMOE_ERR_MEMORY;
        errno = 0;
        writer->file = fopen(name->data, "wbx"); /* x (C11): never a file that exists */
    }
    return writer->file ? TMOE_OK : tmoei_writer_trouble(ctx, writer);
}

/* Writes bytes; a failure is reported by tmoei_writer_commit. */
static void tmoei_writer_bytes(tmoei_writer *writer, const void *bytes, size_t n)
{
    if (fwrite(bytes, 1, n, writer->file) != n && !writer->trouble)
        writer->trouble = errno ? errno : EIO;
}

/* A number as n bytes, the lowest first. */
static void tmoei_writer_little(tmoei_writer *writer, uint64_t x, size_t n)
{
    unsigned char bytes[8];
    for (size_t i = 0; i < n; i++) bytes[i] = (unsigned char)(x >> (8 * i));
    tmoei_writer_bytes(writer, bytes, n);
}

/* Flushes the temporary file to the disk and gives it the wanted name. */
static tmoe_result tmoei_writer_commit(tmoe_ctx *ctx, tmoei_writer *writer)
{
    const char *temporary = writer->temporary.data;
    int good = !writer->trouble && fflush(writer->file) == 0;
#if defined(TMOEI_POSIX)
    good = good && fsync(fileno(writer->file)) == 0;
#endif
    good = fclose(writer->file) == 0 && good;
    writer->file = NULL;
    if (good && rename(temporary, writer->path) == 0) return TMOE_OK;

#if defined(_WIN32)
    /* rename does not replace there. Once the old file is removed, the temporary one is the only
     * copy and stays, whatever happens. */
    if (good && remove(writer->path) == 0) {
        if (rename(temporary, writer->path) == 0) return TMOE_OK;
        return tmoei_fail(ctx, TMOE_ERR_FILE, "%s: cannot be written: %s; all of it is in %s",
            writer->path, strerror(errno), temporary);
    }
#endif
    (void)tmoei_writer_trouble(ctx, writer);
    (void)remove(temporary);
    return TMOE_ERR_FILE;
}

static void tmoei_writer_span(tmoei_writer *writer, const tmoei_span *span)
{
    const size_t whole = tmoei_little_endian() ? span->count : 0; /* memory is what a file holds */
    for (size_t i = 0; i < span->zeros; i++) tmoei_writer_little(writer, 0, 4);
    tmoei_writer_bytes(writer, span->data, whole * sizeof(float));
    for (size_t i = whole; i < span->count; i++)
        tmoei_writer_little(writer, tmoei_bits_of_float(span->data[i]), 4);
}

/* Writes what was declared to path. */
static tmoe_result tmoei_writer_save(tmoe_ctx *ctx, tmoei_writer *writer, const char *path)
{
    tmoei_buffer *json = &writer->json;
    tmoei_buffer_add(ctx, json, "}", 1);
    /* Spaces up to 64 bytes: the data begin on a cache line. */
    while (!json->failed && (json->length + 8) % 64) tmoei_buffer_add(ctx, json, " ", 1);
    if (ctx->error != TMOE_OK) return ctx->error;

    TMOEI_TRY(tmoei_writer_open(ctx, writer, path));
    tmoei_writer_little(writer, json->length, 8);
    tmoei_writer_bytes(writer, json->data, json->length);
    for (size_t i = 0; i < writer->count; i++) tmoei_writer_span(writer, &writer->spans[i]);
    return tmoei_writer_commit(ctx, writer);
}

/* ---- numpy's .npy ----
 *   6 bytes   "\x93NUMPY"
 *   2 bytes   version: 1.0, 2.0 or 3.0
 *   2 bytes   length of the header (4 bytes from version 2.0 on), little-endian
 *   header    a Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
 *   data      the numbers */

/* Bytes of a number, by the header of a (rows, cols) array; 0 where it is another's. The header is
 * compared without what is written in several ways: quotes, spaces, a comma before a bracket, and
 * the L that Python 2 put behind a number. */
static size_t tmoei_npy_header(tmoe_ctx *ctx, const char *path, const char *header, size_t length,
    int rows, int cols)
{
    char text[128], shape[48]; /* a header that is longer is another's */
    size_t n = 0;
    for (size_t i = 0; i < length && n + 1 < sizeof text; i++) {
        const char c = header[i];
        if (strchr("'\" \nL", c)) continue;
        if (n && text[n - 1] == ',' && (c == ')' || c == '}')) n--;
        text[n++] = c;
    }
    text[n] = 0;

    (void)snprintf(shape, sizeof shape, "shape:(%d,%d)", rows, cols);
    /* The length shows that there is nothing else. */
    if (n == strlen("{descr:<f4,fortran_order:False,}") + strlen(shape) && strstr(text, shape)
        && strstr(text, "fortran_order:False")) {
        if (strstr(text, "descr:<f4")) return 4;
        if (strstr(text, "descr:<f8")) return 8;
    }
    TMOEI_BAD_FORMAT(ctx, "npy_load: %s: must be '<f4' or '<f8' in C order, %s; is %s", path, shape,
        text);
    return 0;
}

TMOE_DEF tmoe_result tmoe_npy_load(tmoe_ctx *ctx, const char *path, float *x, int rows, int cols)
{
    size_t size = 0, count = 0, bytes = 0;
    size_t from = 0, length = 0; /* of the header */
    tmoei_begin(ctx);
    if (!path || !x || rows < 1 || cols < 1 || !tmoei_size(&count, (size_t)rows, (size_t)cols, 0))
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "npy_load: a NULL, or (%d, %d); both at least 1",
            rows, cols);
    char *file = tmoei_read_file(ctx, path, TMOEI_DATA_FILE_MAX, &size);
    if (!file) return ctx->error;

    const unsigned char *head = (const unsigned char *)file;
    if (size >= 12 && memcmp(file, "\x93NUMPY", 6) == 0 && head[6] >= 1 && head[6] <= 3) {
        from = head[6] == 1 ? 10 : 12;
        length = (size_t)tmoei_little(head + 8, from - 8);
    }
    if (length > size - from) length = 0;
    if (length == 0)
        TMOEI_BAD_FORMAT(ctx, "npy_load: %s: is not a .npy file, or cut off", path);
    else
        bytes = tmoei_npy_header(ctx, path, file + from, length, rows, cols);
    const unsigned char *data = head + from + length;
    const size_t data_bytes = size - from - length;
    if (bytes && (data_bytes / bytes != count || data_bytes % bytes != 0))
        TMOEI_BAD_FORMAT(ctx, "npy_load: %s: %lu bytes of numbers; must be %lu of %lu bytes", path,
            (unsigned long)data_bytes, (unsigned long)count, (unsigned long)bytes);
    for (size_t i = 0; ctx->error == TMOE_OK && i < count; i++) {
        const uint64_t bits = tmoei_little(data + i * bytes, bytes);
        double number;
        memcpy(&number, &bits, sizeof number);
        x[i] = bytes == 4 ? tmoei_float_of_bits((uint32_t)bits) : (float)number;
    }
    tmoei_free(ctx, file);
    return ctx->error;
}

#endif /* TMOE_NO_STDIO */

/* ==== >>tokenizer: bytes, and byte-level BPE =====================================================
 * A text is cut into words as GPT-2 does (a space belongs to the word behind it), a word's bytes
 * become tokens, and the earliest merge that applies is done until none applies. Without merges
 * these are plain bytes. Tokenizers made here number <s>, <pad>, </s> 0, 1, 2, byte b 3 + b, then
 * one token a merge; loaded ones have the ids of their vocabulary. Every tokenizer is saved as a
 * tokenizer.json of Hugging Face's. */

/* ---- hash table from hashes to indices: open addressing, at most half full ---- */

typedef struct tmoei_slot {
    uint64_t hash;
    int value; /* index + 1; 0: empty */
} tmoei_slot;

typedef struct tmoei_table {
    tmoei_slot *slots;
    size_t size, used; /* size: 0 or a power of two */
} tmoei_table;

/* The next index with this hash, or -1. *at begins at 0 and keeps the place of the search. */
static int tmoei_table_find(const tmoei_table *table, uint64_t hash, size_t *at)
{
    while (table->size) {
        const tmoei_slot *slot = &table->slots[(size_t)(hash + *at) & (table->size - 1)];
        (*at)++;
        if (!slot->value || slot->hash == hash) return slot->value - 1;
    }
    return -1;
}

static void tmoei_table_put(tmoei_table *table, tmoei_slot slot)
{
    size_t at = (size_t)slot.hash;
    while (table->slots[at & (table->size - 1)].value) at++;
    table->slots[at & (table->size - 1)] = slot;
}

static int tmoei_table_add(tmoe_ctx *ctx, tmoei_table *table, uint64_t hash, int index)
{
    const tmoei_slot slot = { hash, index + 1 };
    if (2 * (table->used + 1) > table->size) {
        tmoei_table bigger = { NULL, table->size ? 2 * table->size : 64, table->used };
        bigger.slots = (tmoei_slot *)tmoei_alloc(ctx, bigger.size, sizeof slot, 1);
        if (!bigger.slots) return 0;
        for (size_t i = 0; i < table->size; i++)
            if (table->slots[i].value) tmoei_table_put(&bigger, table->slots[i]);
        tmoei_free(ctx, table->slots);
        *table = bigger;
    }
    tmoei_table_put(table, slot);
    table->used++;
    return 1;
}

/* FNV-1a, then mixed: similar texts get distant slots. */
static uint64_t tmoei_text_hash(const char *text, size_t length)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)text[i]) * UINT64_C(0x100000001b3);
    return tmoei_mix64(hash);
}

/* The mixing is one to one: equal hashes are equal pairs. */
static uint64_t tmoei_pair_hash(int left, int right)
{
    return tmoei_mix64((uint64_t)(uint32_t)left << 32 | (uint32_t)right);
}

static int tmoei_pair_find(const tmoei_table *table, int left, int right)
{
    size_t at = 0;
    return tmoei_table_find(table, tmoei_pair_hash(left, right), &at);
}

/* ---- the tokenizer: tokens, merges, special tokens ---- */

#define TMOEI_BYTES_FIRST 3 /* id of byte 0 in tokenizers made here */
#define TMOEI_MERGES_FIRST (TMOEI_BYTES_FIRST + 256)
#define TMOEI_TOKEN_BYTES 65536

typedef struct tmoei_merge_pair {
    int left, right, result;
} tmoei_merge_pair;

typedef struct tmoei_token { /* in the buffer of bytes; length 0: there is no such id */
    size_t start, length;
} tmoei_token;

typedef struct tmoei_special { /* found in a text before it is cut into words */
    int id;
    int left_strip; /* takes white space before it along */
    int ordinary;   /* part of the text: decoding keeps it */
} tmoei_special;

typedef struct tmoei_bpe {
    tmoe_tokenizer base;
    int merge_count, special_count, run_count;
    int byte_id[256];    /* -1: none */
    int prefix_space;    /* every text is encoded with a space before it */
    tmoei_buffer bytes;  /* of all tokens */
    tmoei_token *tokens; /* by id */
    size_t tokens_capacity, merges_capacity, specials_capacity;
    tmoei_table ids;   /* tokens by their bytes */
    tmoei_table pairs; /* merges by their two tokens */
    tmoei_merge_pair *merges;
    tmoei_special *specials;
    uint32_t *runs; /* of letters and numbers: 4 * first code point + kind */
} tmoei_bpe;

static const tmoei_bpe *tmoei_bpe_of(const tmoe_tokenizer *tokenizer)
{
    return (const tmoei_bpe *)tokenizer;
}

static const char *tmoei_token_text(const tmoei_bpe *t, int i)
{
    return t->bytes.data + t->tokens[i].start;
}

/* The token with these bytes, or -1. */
static int tmoei_token_find(const tmoei_bpe *t, const char *text, size_t length)
{
    const uint64_t hash = tmoei_text_hash(text, length);
    size_t at = 0;
    int id = tmoei_table_find(&t->ids, hash, &at);
    while (id >= 0
        && (t->tokens[id].length != length || memcmp(tmoei_token_text(t, id), text, length) != 0))
        id = tmoei_table_find(&t->ids, hash, &at);
    return id;
}

/* Makes a token with an id that has none. It is not found by its bytes until it is published. */
static int tmoei_token_put(tmoei_bpe *t, int id, const char *text, size_t length)
{
    const tmoei_token token = { t->bytes.length, length }, none = { 0, 0 };
    tmoe_ctx *ctx = t->base.ctx;
    tmoei_buffer_add(ctx, &t->bytes, text, length);
    if (t->bytes.failed
        || !tmoei_grow(ctx, &t->tokens, &t->tokens_capacity, (size_t)id + 1, sizeof token))
        return 0;
    while (t->base.vocabulary <= id) t->tokens[t->base.vocabulary++] = none;
    t->tokens[id] = token;
    return 1;
}

static int tmoei_token_publish(tmoei_bpe *t, int id)
{
    const char *text = tmoei_token_text(t, id);
    const size_t n = t->tokens[id].length;
    if (n == 1) t->byte_id[(unsigned char)text[0]] = id;
    return tmoei_table_add(t->base.ctx, &t->ids, tmoei_text_hash(text, n), id);
}

static int tmoei_token_add(tmoei_bpe *t, const char *text, size_t length)
{
    const int id = t->base.vocabulary;
    return tmoei_token_put(t, id, text, length) && tmoei_token_publish(t, id);
}

static int tmoei_merge_add(tmoei_bpe *t, tmoei_merge_pair merge)
{
    const size_t n = (size_t)t->merge_count + 1;
    if (!tmoei_grow(t->base.ctx, &t->merges, &t->merges_capacity, n, sizeof merge)
        || !tmoei_table_add(t->base.ctx, &t->pairs, tmoei_pair_hash(merge.left, merge.right),
            t->merge_count))
        return 0;
    t->merges[t->merge_count++] = merge;
    return 1;
}

static void tmoei_special_add(tmoei_bpe *t, tmoei_special special)
{
    const size_t n = (size_t)t->special_count + 1;
    if (!tmoei_grow(t->base.ctx, &t->specials, &t->specials_capacity, n, sizeof special)) return;
    t->specials[t->special_count++] = special;
}

static const tmoei_special *tmoei_special_of(const tmoei_bpe *t, int id)
{
    for (int i = 0; i < t->special_count; i++)
        if (t->specials[i].id == id) return &t->specials[i];
    return NULL;
}

static void tmoei_bpe_destroy(tmoe_tokenizer *tokenizer)
{
    tmoei_bpe *t = (tmoei_bpe *)tokenizer;
    tmoe_ctx *ctx = tokenizer->ctx;
    tmoei_buffer_free(ctx, &t->bytes);
    tmoei_free(ctx, t->tokens);
    tmoei_free(ctx, t->runs);
    tmoei_free(ctx, t->merges);
    tmoei_free(ctx, t->specials);
    tmoei_free(ctx, t->ids.slots);
    tmoei_free(ctx, t->pairs.slots);
    tmoei_free(ctx, t);
}

static const char *const tmoei_special_names[TMOEI_SPECIALS] = { "<s>", "<pad>", "</s>", "<unk>",
    "<mask>" };

/* The tokenizer; where something failed, destroys it and returns NULL. */
static tmoe_tokenizer *tmoei_bpe_if_good(tmoei_bpe *t)
{
    if (t && t->base.ctx->error != TMOE_OK) {
        tmoei_bpe_destroy(&t->base);
        return NULL;
    }
    return (tmoe_tokenizer *)t;
}

/* ---- letters and numbers of Unicode ----
 * \p{L} and \p{N} of Unicode 16, which Hugging Face's tokenizers 0.23 follow; made by
 * tests/make_unicode.py. The table lists runs of one kind from U+0080 on, each as the number
 * 3 * length + kind (0 other, 1 letter, 2 number) in base 32: the last digit is from the first half
 * of the alphabet, those before it from the second. */
static const char tmoei_unicode_digits[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";
static const char tmoei_unicode_runs[] =
    "jeEVIDEJFEDLDiGDieDhqfMhFhKQVEDEsDQDHGNDESEDKDEDhdDnaDtCYvTDjTGESjcmViSMNkHkChfhAMHDpKDEhNHVHh"
    "AKGEhQEDibiXoMhBEhKhAjEbHMEPiDMEbEJEiFiMVhCPiJDThTjflOlDJEhWEVfMhADhRMZGHGiDDWDEJNJEhQEhHHDKMh"
    "AHGUGEYTMHGiDDWDHDHDHidNDEVhAGKhQcDKDiDDWDHDQJEhWEhNHMhAbEhBZGHGiDDWDHDQJEiaHDKMhADEUhBEDTJKDN"
    "JHDEDHJHJKJhFiCEhfhJhWZDKDiGDhRJEiOKGEGHMhAYXDEMZDKDiGDfDQJEidHDHMhADHhTcDKDjcGEhQEPKDXKMhbDTP"
    "hXJiJDcDEGWidhAhTkRDHhEWbhAjVHDEDQDiJDEDfDHbEGQDEbhAGNjAEidhehEZDjNiRQqZkChcEhASTMNJEJHVKMhIhE"
    "EDhASjTDEPEGkCD-IDNGWDEDNGjcDNGjEDNGWDEDNGhODlMDNGmKhKheJhRhQoDGTJh6FGhUDiPPnCJLZVhXhHhahKhXhK"
    "hIDKhNkdjJEMEJhAShAiChASoMVQGjHDEPmTeiejVhAibGQhBkFMiPShDjPiGblAkBhAShAhHEoXkOhTZJhAjbibhHHhAk"
    "FiOjNiUhAJKhAjNGhCPkCGKjbNDTDHJEPyBmA6DGTGjTGTGZDEDEDEDieGlADWDEJKDWJNGTMhIPKDWqZFEGUPEhAShIpP"
    "EMEGfDEJQSEDEDEDNDhCGNPQMEDkbHRikClWnKiEh7CicjqE1QSNJHbFGjTDEPEGlJVEhQiGbWDWDWDWDWDWDWDWnQEhrf"
    "HFiLdVQGLHMoDSKDoPDNPkCDobJOejBkQhRjAhAiaaDhPjAhAjVhP+AzqBmAig9ImJkLG5IJhRhAHhckOhQieGmThAjVcG"
    "pWGmKGHDEDZhfhRDKDNDiGhHUekdhKkXiUhAiITJEDHDhAiVeiGiLiYVkOiUEhASQDfhAQDjciFKDZMhASiGJEJkXDEJHG"
    "QGEDEiIKGhCVKhETGTGTbWDWDkCDhLSqahHhAShg3NhEiGMkU44MhiLGpfjSWhEQPEDfDhIDQDEDHDHDqFjDhiChWmBGlD"
    "jYhFqcQDsWhZhAViPSiPhBoMJTGTGTGKjJhFDiPDhaDHDhOGhLjGrShEkJhElNhTI2ciYJkUhQiTMjBObhdFZFPjTeibGj"
    "NMZDRjeubGhASjNMjNMjZYkdhEhCDhODWDHDhCDhODWDHJkdhE9GbiDeZiITDjfDcmPTGEDkFDHJEGiGGaiGGXieYdkQha"
    "DHPRiDUMiPmSlJMIHhSGkMEhNNDKDiYediFiYIDiYLjAZDiVSRhQlDeiDGahaPahXiFXnQmclFkahHkaVUjNhEhAShAiVb"
    "iG0OifDjfSHhQKlRiYhAEYiDhBOiRhXkKiAXhciGhElAiOicDHGEhHkIjAiMVhAbjNhNhAMEGEYjKJEhEkRhKNhBhAEDEM"
    "hehBhXDiMhZHldWDEDNDhODfVkOhThAhBZGHGiDDWDHDQJEhWEhEQiafDEGEDjTDEiLEDEkElAhWNPhAPKiakRhcHDEYhA"
    "vSkOjbNjMkRhcEhBhAjSkChHEVhASheiUiShfhGMWxLkFqcmBhbhEZGEGZDHDiJhNEDEhKhAmSZGjWhQEDEiUEejZVEhfE"
    "hBkLhZEhWmcyVjEhNhAScDjQhTEhNiZPibqQWDHDjThfEbhASTDHDjBhKEVhA9ChahNEDhIDjHiUhAoCEhNiBkBi2PpSqP"
    "hTyNn3EpEhNjkRhTTiLr2SPh2W0hLibhWhAliSh1MVieDhASnODhASibhWkRhQNhEhADXDiAPhahoQkIJhAySmBiHpbnCP"
    "EmGhImAHDEiUx-JYj0Djbf6lVNDWDHD7KhNEiXKGEhKNYhlFm4MqCPhIJcVfsoChAkqShehEheqEiNsVoADmWDHGEGHGND"
    "hFDEDWDmEDNGZDWDiVDNDQDEJWD-dGiMDiMDieDiMDieDiMDieDiMDieDiMDZGkYloAieST4PlbtWkIeWGhAME+DibhWkF"
    "MhAhsCiVMhA0CibGEhAhtPWDNDHDhODyQGdkQmNVEMhAiqFlTDLDOnEkJDhPyGNDiSDHDEGEDfDNDEDESEMEDEDEDKDHDE"
    "GEDEDEDEDEDHDEGNDWDNDNDEDfDhUPKDQDhUh2MhJolJhAjgSj9lBjAslPS0bGw8HhK18UhNh6LnnGhybktGuvCPspBizl"
    "nQ";

enum { TMOEI_OTHER, TMOEI_LETTER, TMOEI_NUMBER, TMOEI_SPACE, TMOEI_ENDED };

static void tmoei_unicode_unpack(tmoei_bpe *t)
{
    const size_t most = sizeof tmoei_unicode_runs; /* a run has at least one digit */
    uint32_t value = 0, first = 0x80;
    t->runs = (uint32_t *)tmoei_alloc(t->base.ctx, most, sizeof *t->runs, 0);
    if (!t->runs) return;
    for (const char *c = tmoei_unicode_runs; *c; c++) {
        const uint32_t digit = (uint32_t)(strchr(tmoei_unicode_digits, *c) - tmoei_unicode_digits);
        value = value * 32 + digit % 32;
        if (digit >= 32) continue;
        t->runs[t->run_count++] = 4 * first + value % 3;
        first += value / 3;
        value = 0;
    }
}

/* Kind of the character at text[at] and its bytes; a byte that is not UTF-8 is OTHER. */
static int tmoei_character(const tmoei_bpe *t, const char *text, size_t n, size_t at, size_t *bytes)
{
    uint32_t c = 0;
    if (at >= n) return TMOEI_ENDED;
    *bytes = tmoei_utf8_next(text, n, at, &c);
    if (!*bytes) {
        *bytes = 1;
        return TMOEI_OTHER;
    }
    if (tmoei_is_white_space(c)) return TMOEI_SPACE;
    if (c >= '0' && c <= '9') return TMOEI_NUMBER;
    if (c < 0x80) return tmoei_is_word_byte((unsigned char)c) ? TMOEI_LETTER : TMOEI_OTHER;

    int low = 0, high = t->run_count - 1; /* the last run that begins at c or before */
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (t->runs[middle] >> 2 <= c)
            low = middle;
        else
            high = middle - 1;
    }
    return (int)(t->runs[low] & 3u);
}

/* Where the word that begins at `at` ends: GPT-2's pattern
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t tmoei_word_end(const tmoei_bpe *t, const char *text, size_t length, size_t at)
{
    static const char *const endings[] = { "'s", "'t", "'re", "'ve", "'m", "'ll", "'d" };
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        const size_t n = strlen(endings[i]);
        if (n <= length - at && memcmp(text + at, endings[i], n) == 0) return at + n;
    }

    size_t end = at, last_space = at, bytes = 0;
    int kind = tmoei_character(t, text, length, end, &bytes);
    while (kind == TMOEI_SPACE) {
        last_space = end;
        end += bytes;
        kind = tmoei_character(t, text, length, end, &bytes);
    }
    if (kind == TMOEI_ENDED) return end;         /* white space up to the text's end */
    if (last_space > at) return last_space;      /* the last of several begins the next word */
    if (end > at && text[at] != ' ') return end; /* only ' ' is part of the word behind it */

    const int word = kind;
    while (kind == word) {
        end += bytes;
        kind = tmoei_character(t, text, length, end, &bytes);
    }
    return end;
}

/* ---- encoding ----
 * A word's tokens are a linked list. The merges that apply wait in a heap as rank << 32 | place:
 * the earliest merge first, then the leftmost. A merge joins two tokens and may let one with each
 * neighbour apply, so a word of n bytes takes O(n log n). */

static void tmoei_heap_push(uint64_t *heap, int *count, uint64_t x)
{
    int i = (*count)++;
    while (i > 0 && x < heap[(i - 1) / 2]) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = x;
}

static uint64_t tmoei_heap_pop(uint64_t *heap, int *count)
{
    const uint64_t top = heap[0], x = heap[--*count];
    int i = 0;
    while (2 * i + 1 < *count) {
        int child = 2 * i + 1;
        if (child + 1 < *count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= x) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = x;
    return top;
}

typedef struct tmoei_symbol {
    int id, next, before; /* id -1: merged away; next, before -1: none */
} tmoei_symbol;

typedef struct tmoei_encoder {
    const tmoei_bpe *tokenizer;
    tmoei_symbol *s; /* the word, a symbol for each byte */
    uint64_t *heap;
    int heap_count;
    int *ids; /* out: the first `capacity` of `count` */
    size_t capacity, count, s_capacity, heap_capacity;
} tmoei_encoder;

/* Pushes the merge of the tokens at `at` and behind it, where there is one. */
static void tmoei_encoder_note(tmoei_encoder *e, int at)
{
    if (at < 0 || e->s[at].next < 0) return;
    const int merge = tmoei_pair_find(&e->tokenizer->pairs, e->s[at].id, e->s[e->s[at].next].id);
    if (merge >= 0) tmoei_heap_push(e->heap, &e->heap_count, (uint64_t)merge << 32 | (uint32_t)at);
}

static void tmoei_encoder_put(tmoei_encoder *e, int id)
{
    if (e->count < e->capacity) e->ids[e->count] = id;
    e->count++;
}

static tmoe_result tmoei_encoder_word(tmoei_encoder *e, const char *text, size_t length)
{
    const tmoei_bpe *t = e->tokenizer;
    tmoe_ctx *ctx = t->base.ctx;
    if (length >= (size_t)INT_MAX / 8)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "tokenizer_encode: a word of %lu bytes",
            (unsigned long)length);
    /* A note for each byte, and two for each of at most n - 1 merges. */
    if (!tmoei_grow(ctx, &e->s, &e->s_capacity, length, sizeof *e->s)
        || !tmoei_grow(ctx, &e->heap, &e->heap_capacity, 3 * length, sizeof *e->heap))
        return TMOE_ERR_MEMORY;

    const int n = (int)length;
    for (int i = 0; i < n; i++) {
        e->s[i].id = t->byte_id[(unsigned char)text[i]];
        e->s[i].next = i + 1 < n ? i + 1 : -1;
        e->s[i].before = i - 1;
    }
    for (int i = 0; i < n; i++) tmoei_encoder_note(e, i);
    while (e->heap_count) {
        const uint64_t first = tmoei_heap_pop(e->heap, &e->heap_count);
        const tmoei_merge_pair pair = t->merges[first >> 32];
        const int at = (int)(first & 0xffffffffu), right = e->s[at].next;
        if (e->s[at].id != pair.left || right < 0 || e->s[right].id != pair.right)
            continue; /* a merge since it was noted changed one of the two */
        e->s[at].id = pair.result;
        e->s[right].id = -1;
        e->s[at].next = e->s[right].next;
        if (e->s[at].next >= 0) e->s[e->s[at].next].before = at;
        tmoei_encoder_note(e, e->s[at].before);
        tmoei_encoder_note(e, at);
    }
    for (int i = 0; i < n; i++)
        if (e->s[i].id >= 0) tmoei_encoder_put(e, e->s[i].id);
    return TMOE_OK;
}

/* Encodes the words of a piece of text without special tokens; prefix: with a space before it,
 * unless it begins with one. */
static tmoe_result tmoei_encoder_text(tmoei_encoder *e, const char *text, size_t length, int prefix)
{
    tmoe_ctx *ctx = e->tokenizer->base.ctx;
    tmoe_result result = TMOE_OK;
    tmoei_buffer copy = { NULL, 0, 0, 0 };
    if (prefix && length && text[0] != ' ') {
        tmoei_buffer_add(ctx, &copy, " ", 1);
        tmoei_buffer_add(ctx, &copy, text, length);
        text = copy.data;
        length = copy.length;
        if (copy.failed) result = TMOE_ERR_MEMORY;
    }
    size_t at = 0;
    while (result == TMOE_OK && at < length) {
        const size_t end = tmoei_word_end(e->tokenizer, text, length, at);
        result = tmoei_encoder_word(e, text + at, end - at);
        at = end;
    }
    tmoei_buffer_free(ctx, &copy);
    return result;
}

/* The special token that text begins with, the longest of several, or NULL. */
static const tmoei_special *tmoei_special_at(const tmoei_bpe *t, const char *text, size_t left)
{
    const tmoei_special *best = NULL;
    size_t longest = 0;
    for (int i = 0; i < t->special_count; i++) {
        const int id = t->specials[i].id;
        const size_t n = t->tokens[id].length;
        if (n <= longest || n > left || memcmp(text, tmoei_token_text(t, id), n) != 0) continue;
        best = &t->specials[i];
        longest = n;
    }
    return best;
}

static tmoe_result tmoei_bpe_encode(const tmoe_tokenizer *tokenizer, const char *text,
    size_t length, int flags, int *ids, size_t capacity, size_t *count)
{
    const tmoei_bpe *t = tmoei_bpe_of(tokenizer);
    const int prefix = t->prefix_space || (flags & TMOE_TOKENIZER_PREFIX_SPACE);
    tmoe_result result = TMOE_OK;
    tmoei_encoder e;
    memset(&e, 0, sizeof e);
    e.tokenizer = t;
    e.ids = ids;
    e.capacity = capacity;

    if (flags & TMOE_TOKENIZER_SPECIALS)
        tmoei_encoder_put(&e, tokenizer->specials[TMOE_TOKEN_BEGIN]);
    size_t at = 0;
    while (result == TMOE_OK && at < length) {
        const tmoei_special *special = NULL;
        size_t end = flags & TMOE_TOKENIZER_FIND_SPECIALS ? at : length;
        while (end < length && !special) {
            special = tmoei_special_at(t, text + end, length - end);
            if (!special) end++;
        }
        size_t piece = end - at;
        if (special && special->left_strip) {
            const char *stripped = tmoei_strip(text + at, &piece);
            if (piece) piece += (size_t)(stripped - text) - at; /* space before it stays */
        }
        result = tmoei_encoder_text(&e, text + at, piece, prefix);
        at = end;
        if (special) {
            tmoei_encoder_put(&e, special->id);
            at += t->tokens[special->id].length;
        }
    }
    if (flags & TMOE_TOKENIZER_SPECIALS) tmoei_encoder_put(&e, tokenizer->specials[TMOE_TOKEN_END]);

    if (result == TMOE_OK) *count = e.count;
    tmoei_free(tokenizer->ctx, e.s);
    tmoei_free(tokenizer->ctx, e.heap);
    return result;
}

/* ---- decoding ---- */

/* Removes the spaces of tokenised English as transformers does: " ." becomes "." and so on, one
 * replacement after the other. Returns the new length. */
static size_t tmoei_clean_spaces(char *text, size_t length)
{
    static const char *const from[] = { " .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've",
        " 're" };
    for (size_t i = 0; i < sizeof from / sizeof *from; i++) {
        const size_t n = strlen(from[i]);
        const size_t keep = from[i][n - 1] == ' ' ? n - 2 : n - 1; /* " ' " becomes "'" */
        size_t to = 0, at = 0;
        while (at < length) {
            const int found = n <= length - at && memcmp(text + at, from[i], n) == 0;
            const size_t kept = found ? keep : 1;
            memmove(text + to, text + at + found, kept);
            to += kept;
            at += found ? n : 1;
        }
        length = to;
    }
    return length;
}

static tmoe_result tmoei_bpe_decode(const tmoe_tokenizer *tokenizer, const int *ids, size_t count,
    int flags, char *text, size_t capacity, size_t *length)
{
    const tmoei_bpe *t = tmoei_bpe_of(tokenizer);
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        const tmoei_special *special =
            flags & TMOE_TOKENIZER_SKIP_SPECIALS ? tmoei_special_of(t, ids[i]) : NULL;
        const size_t n = t->tokens[ids[i]].length;
        if (special && !special->ordinary) continue;
        if (n && used + n <= capacity) memcpy(text + used, tmoei_token_text(t, ids[i]), n);
        used += n;
    }
    if (used <= capacity && (flags & TMOE_TOKENIZER_CLEAN_SPACES))
        used = tmoei_clean_spaces(text, used);
    if (used < capacity) text[used] = 0;
    *length = used;
    return TMOE_OK;
}

/* ---- making one ---- */

static tmoe_tokenizer *tmoei_bpe_copy(tmoe_ctx *ctx, const tmoe_tokenizer *tokenizer);

/* A tokenizer without tokens. */
static tmoei_bpe *tmoei_bpe_begin(tmoe_ctx *ctx)
{
    tmoei_bpe *t = (tmoei_bpe *)tmoei_alloc(ctx, 1, sizeof *t, 1);
    if (!t) return NULL;
    t->base.ctx = ctx;
    t->base.encode = tmoei_bpe_encode;
    t->base.decode = tmoei_bpe_decode;
    t->base.copy = tmoei_bpe_copy;
    t->base.destroy = tmoei_bpe_destroy;
    memset(t->byte_id, -1, sizeof t->byte_id);
    memset(t->base.specials, -1, sizeof t->base.specials);
    tmoei_unicode_unpack(t);
    return t;
}

static tmoe_tokenizer *tmoei_bpe_copy(tmoe_ctx *ctx, const tmoe_tokenizer *tokenizer)
{
    const tmoei_bpe *from = tmoei_bpe_of(tokenizer);
    tmoei_bpe *t = tmoei_bpe_begin(ctx);
    for (int id = 0; ctx->error == TMOE_OK && id < tokenizer->vocabulary; id++) {
        const char *text = tmoei_token_text(from, id);
        const size_t n = from->tokens[id].length;
        if (n && tmoei_token_put(t, id, text, n) && tmoei_token_find(from, text, n) == id)
            (void)tmoei_token_publish(t, id);
    }
    for (int i = 0; ctx->error == TMOE_OK && i < from->merge_count; i++)
        (void)tmoei_merge_add(t, from->merges[i]);
    for (int i = 0; ctx->error == TMOE_OK && i < from->special_count; i++)
        tmoei_special_add(t, from->specials[i]);
    if (t) {
        memcpy(t->byte_id, from->byte_id, sizeof t->byte_id);
        memcpy(t->base.specials, tokenizer->specials, sizeof t->base.specials);
        t->prefix_space = from->prefix_space;
    }
    return tmoei_bpe_if_good(t);
}

/* <s>, <pad>, </s> and the 256 bytes; errors are in the context. */
static tmoei_bpe *tmoei_bpe_of_bytes(tmoe_ctx *ctx)
{
    tmoei_bpe *t = tmoei_bpe_begin(ctx);
    for (int i = 0; ctx->error == TMOE_OK && i < TMOEI_BYTES_FIRST; i++) {
        const tmoei_special special = { i, 0, 0 };
        const char *name = tmoei_special_names[i];
        if (tmoei_token_add(t, name, strlen(name))) tmoei_special_add(t, special);
        t->base.specials[i] = i;
    }
    for (int b = 0; ctx->error == TMOE_OK && b < 256; b++) {
        const char byte = (char)b;
        (void)tmoei_token_add(t, &byte, 1);
    }
    return t;
}

TMOE_DEF tmoe_tokenizer *tmoe_tokenizer_bytes(tmoe_ctx *ctx)
{
    tmoei_begin(ctx);
    return tmoei_bpe_if_good(tmoei_bpe_of_bytes(ctx));
}

/* ---- training (Sennrich 2016) ----
 * The most frequent pair of neighbouring tokens becomes a token, again and again. Every different
 * word is kept once with its count:
 *   count(pair) = sum over words w of count(w) * occurrences of the pair in w
 * A merge changes the counts of the words that hold its pair: they are subtracted with the old
 * tokens and added with the new ones. */

typedef struct tmoei_word {
    size_t first, length; /* its tokens: symbols[first] to symbols[first + length - 1] */
    long long count;
} tmoei_word;

typedef struct tmoei_pair_count {
    int left, right;
    long long count;
} tmoei_pair_count;

typedef struct tmoei_bpe_trainer {
    tmoe_ctx *ctx;
    tmoei_bpe *texts; /* its tokens are the different words */
    tmoei_word *words;
    int *symbols;            /* all words' tokens, one behind the other */
    tmoei_pair_count *pairs; /* all that ever occurred */
    tmoei_table pair_table;
    size_t symbol_count, symbol_capacity, word_capacity, pair_count, pair_capacity;
} tmoei_bpe_trainer;

/* Adds `count` to the counts of a word's pairs. */
static void tmoei_bpe_count(tmoei_bpe_trainer *bpe, const tmoei_word *word, long long count)
{
    const int *s = bpe->symbols + word->first;
    for (size_t k = 0; k + 1 < word->length; k++) {
        const tmoei_pair_count pair = { s[k], s[k + 1], 0 };
        const size_t n = bpe->pair_count;
        int i = tmoei_pair_find(&bpe->pair_table, s[k], s[k + 1]);
        if (i < 0) {
            i = (int)n;
            if (!tmoei_grow(bpe->ctx, &bpe->pairs, &bpe->pair_capacity, n + 1, sizeof pair)
                || !tmoei_table_add(bpe->ctx, &bpe->pair_table, tmoei_pair_hash(s[k], s[k + 1]), i))
                return;
            bpe->pairs[n] = pair;
            bpe->pair_count++;
        }
        bpe->pairs[i].count += count;
    }
}

static void tmoei_bpe_word(tmoei_bpe_trainer *bpe, const char *text, size_t length)
{
    const tmoei_word word = { bpe->symbol_count, length, 1 };
    const size_t symbols = word.first + length;
    const int known = tmoei_token_find(bpe->texts, text, length), w = bpe->texts->base.vocabulary;
    if (known >= 0) {
        bpe->words[known].count++;
        return;
    }
    if (!tmoei_grow(bpe->ctx, &bpe->words, &bpe->word_capacity, (size_t)w + 1, sizeof word)
        || !tmoei_grow(bpe->ctx, &bpe->symbols, &bpe->symbol_capacity, symbols, sizeof(int))
        || !tmoei_token_add(bpe->texts, text, length))
        return;
    bpe->words[w] = word;
    for (size_t i = 0; i < length; i++)
        bpe->symbols[bpe->symbol_count++] = TMOEI_BYTES_FIRST + (unsigned char)text[i];
}

/* Returns whether the pair is at place i of n tokens. */
static int tmoei_pair_at(const int *s, size_t i, size_t n, const tmoei_merge_pair *pair)
{
    return i + 1 < n && s[i] == pair->left && s[i + 1] == pair->right;
}

/* Replaces the pair by its result in every word. */
static void tmoei_bpe_replace(tmoei_bpe_trainer *bpe, const tmoei_merge_pair *pair)
{
    for (int w = 0; w < bpe->texts->base.vocabulary; w++) {
        tmoei_word *word = &bpe->words[w];
        int *s = bpe->symbols + word->first;
        const size_t n = word->length;
        size_t i = 0, to = 0;
        while (i < n && !tmoei_pair_at(s, i, n, pair)) i++;
        if (i == n) continue;

        tmoei_bpe_count(bpe, word, -word->count);
        i = 0;
        while (i < n) {
            const int both = tmoei_pair_at(s, i, n, pair);
            s[to] = both ? pair->result : s[i];
            to++;
            i += both ? 2 : 1;
        }
        word->length = to;
        tmoei_bpe_count(bpe, word, word->count);
    }
}

/* Whether pair a comes before b: the more frequent first, among equals the smaller ids. */
static int tmoei_pair_before(const tmoei_pair_count *a, const tmoei_pair_count *b)
{
    if (a->count != b->count) return a->count > b->count;
    if (a->left != b->left) return a->left < b->left;
    return a->right < b->right;
}

/* Makes the next merge; returns 0 when no pair comes twice. A pair that spells a token that exists
 * merges to that. */
static int tmoei_bpe_merge(tmoei_bpe_trainer *bpe, tmoei_bpe *t)
{
    const tmoei_pair_count *best = NULL;
    for (size_t i = 0; i < bpe->pair_count; i++)
        if (!best || tmoei_pair_before(&bpe->pairs[i], best)) best = &bpe->pairs[i];
    if (!best || best->count < 2) return 0;

    tmoei_merge_pair pair = { best->left, best->right, -1 };
    tmoei_buffer text = { NULL, 0, 0, 0 };
    tmoei_buffer_add(bpe->ctx, &text, tmoei_token_text(t, pair.left), t->tokens[pair.left].length);
    tmoei_buffer_add(bpe->ctx, &text, tmoei_token_text(t, pair.right),
        t->tokens[pair.right].length);
    if (!text.failed) {
        pair.result = tmoei_token_find(t, text.data, text.length);
        if (pair.result < 0 && tmoei_token_add(t, text.data, text.length))
            pair.result = t->base.vocabulary - 1;
    }
    if (pair.result >= 0 && tmoei_merge_add(t, pair)) tmoei_bpe_replace(bpe, &pair);
    tmoei_buffer_free(bpe->ctx, &text);
    return 1;
}

TMOE_DEF tmoe_tokenizer *tmoe_tokenizer_train(tmoe_ctx *ctx, const char *const *texts, size_t count,
    int vocabulary)
{
    tmoei_bpe_trainer bpe;
    tmoei_begin(ctx);
    if (vocabulary < TMOEI_MERGES_FIRST || vocabulary > TMOEI_TOKENS_MAX)
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_ARGUMENT,
            "tokenizer_train: vocabulary %d; must be %d (bytes) to %d", vocabulary,
            TMOEI_MERGES_FIRST, TMOEI_TOKENS_MAX);
    for (size_t i = 0; i < count; i++)
        if (!texts || !texts[i])
            return TMOEI_FAIL_NULL(ctx, TMOE_ERR_ARGUMENT, "tokenizer_train: text %lu is NULL",
                (unsigned long)i);
    memset(&bpe, 0, sizeof bpe);
    bpe.ctx = ctx;
    bpe.texts = tmoei_bpe_begin(ctx);
    tmoei_bpe *t = bpe.texts ? tmoei_bpe_of_bytes(ctx) : NULL;

    for (size_t i = 0; ctx->error == TMOE_OK && i < count; i++) {
        const size_t n = strlen(texts[i]);
        size_t at = 0;
        while (ctx->error == TMOE_OK && at < n) {
            const size_t end = tmoei_word_end(t, texts[i], n, at);
            tmoei_bpe_word(&bpe, texts[i] + at, end - at);
            at = end;
        }
    }
    for (int w = 0; ctx->error == TMOE_OK && w < bpe.texts->base.vocabulary; w++)
        tmoei_bpe_count(&bpe, &bpe.words[w], bpe.words[w].count);
    int more = 1;
    while (more && ctx->error == TMOE_OK && t->base.vocabulary < vocabulary)
        more = tmoei_bpe_merge(&bpe, t);

    if (bpe.texts) tmoei_bpe_destroy(&bpe.texts->base);
    tmoei_free(ctx, bpe.symbols);
    tmoei_free(ctx, bpe.words);
    tmoei_free(ctx, bpe.pairs);
    tmoei_free(ctx, bpe.pair_table.slots);
    return tmoei_bpe_if_good(t);
}

#ifndef TMOE_NO_STDIO

/* ---- tokenizer.json, written ----
 * Tokens are written in GPT-2's alphabet: printable bytes of Latin-1 as themselves, the other 68
 * from U+0100 on in their order: 0 to 32, 127 to 160, 173. */
static uint32_t tmoei_byte_to_code(unsigned b)
{
    if (b <= 32) return 256 + b;
    if (b >= 127 && b <= 160) return 256 + 33 + b - 127;
    return b == 173 ? 256 + 67 : b;
}

static int tmoei_code_to_byte(uint32_t c)
{
    if (c < 256) return tmoei_byte_to_code(c) == c ? (int)c : -1;
    if (c <= 256 + 32) return (int)c - 256;
    if (c <= 256 + 66) return (int)c - 256 - 33 + 127;
    return c == 256 + 67 ? 173 : -1;
}

/* Writes a token as a JSON string without its quotes: special and added ones as they are. */
static void tmoei_token_print(tmoei_buffer *buffer, const tmoei_bpe *t, int id)
{
    tmoe_ctx *ctx = t->base.ctx;
    const char *text = tmoei_token_text(t, id);
    const size_t n = t->tokens[id].length;
    if (tmoei_special_of(t, id)) {
        tmoei_buffer_json_text(ctx, buffer, text, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        char code[4];
        tmoei_buffer_json_text(ctx, buffer, code,
            tmoei_utf8_put(tmoei_byte_to_code((unsigned char)text[i]), code));
    }
}

/* A tokenizer.json, which Hugging Face's tokenizers read, too; {} without a tokenizer. */
static void tmoei_tokenizer_to_json(tmoe_ctx *ctx, const tmoe_tokenizer *tokenizer,
    tmoei_buffer *buffer)
{
    const tmoei_bpe *t = tmoei_bpe_of(tokenizer);
    if (!t) {
        tmoei_buffer_print(ctx, buffer, "{}");
        return;
    }
    const char *space = t->prefix_space ? "true" : "false";
    tmoei_buffer_print(ctx, buffer, "{\"version\":\"1.0\",\"added_tokens\":[");
    for (int i = 0; i < t->special_count; i++) {
        const tmoei_special *s = &t->specials[i];
        tmoei_buffer_print(ctx, buffer, "%s{\"id\":%d,\"content\":\"", i ? "," : "", s->id);
        tmoei_token_print(buffer, t, s->id);
        tmoei_buffer_print(ctx, buffer,
            "\",\"single_word\":false,\"lstrip\":%s,\"rstrip\":false,"
            "\"normalized\":false,\"special\":%s}",
            s->left_strip ? "true" : "false", s->ordinary ? "false" : "true");
    }
    tmoei_buffer_print(ctx, buffer,
        "],\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":%s,"
        "\"trim_offsets\":true,\"use_regex\":true},"
        "\"post_processor\":{\"type\":\"RobertaProcessing\",\"sep\":[\"</s>\",%d],"
        "\"cls\":[\"<s>\",%d],\"trim_offsets\":true,\"add_prefix_space\":%s},",
        space, tokenizer->specials[TMOE_TOKEN_END], tokenizer->specials[TMOE_TOKEN_BEGIN], space);
    tmoei_buffer_print(ctx, buffer,
        "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
        "\"trim_offsets\":true,\"use_regex\":true},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    const char *before = "\"";
    for (int id = 0; id < tokenizer->vocabulary; id++) {
        if (!t->tokens[id].length) continue;
        tmoei_buffer_print(ctx, buffer, "%s", before);
        tmoei_token_print(buffer, t, id);
        tmoei_buffer_print(ctx, buffer, "\":%d", id);
        before = ",\"";
    }
    tmoei_buffer_print(ctx, buffer, "},\"merges\":[");
    for (int m = 0; m < t->merge_count; m++) {
        tmoei_buffer_print(ctx, buffer, m ? ",\"" : "\"");
        tmoei_token_print(buffer, t, t->merges[m].left);
        tmoei_buffer_add(ctx, buffer, " ", 1);
        tmoei_token_print(buffer, t, t->merges[m].right);
        tmoei_buffer_add(ctx, buffer, "\"", 1);
    }
    tmoei_buffer_print(ctx, buffer, "]}}");
}

/* ---- tokenizer.json, vocab.json and merges.txt, read ---- */

/* The bytes that a text in GPT-2's alphabet spells, into out (as long as the text); -1: none. */
static long tmoei_token_bytes(const char *text, size_t length, char *out)
{
    long n = 0;
    size_t at = 0;
    while (at < length) {
        uint32_t code = 0;
        const size_t bytes = tmoei_utf8_next(text, length, at, &code);
        const int byte = bytes ? tmoei_code_to_byte(code) : -1;
        if (byte < 0) return -1;
        out[n++] = (char)byte;
        at += bytes;
    }
    return n;
}

/* The id that a node says, where it and the token's length are in range; else -1 and a message. */
static int tmoei_token_id(tmoe_ctx *ctx, const tmoei_json *json, int node, const char *token,
    size_t length)
{
    size_t id;
    if (length > 0 && length <= TMOEI_TOKEN_BYTES && tmoei_json_size(json, node, &id)
        && id < TMOEI_TOKENS_MAX)
        return (int)id;
    TMOEI_BAD_FORMAT(ctx, "%s: token '%.60s' needs 1 to %d bytes and an id from 0 to %d",
        json->name, token, TMOEI_TOKEN_BYTES, TMOEI_TOKENS_MAX - 1);
    return -1;
}

static void tmoei_added_read(tmoei_bpe *t, const tmoei_json *json, int added)
{
    tmoe_ctx *ctx = t->base.ctx;
    int i = tmoei_json_at(json, added)->child;
    for (; ctx->error == TMOE_OK && i >= 0; i = json->nodes[i].next) {
        const int content = tmoei_json_get(json, i, "content");
        const tmoei_json_node *node = tmoei_json_at(json, content);
        const size_t n = tmoei_json_is_string(json, content) ? node->length : 0;
        const int place = tmoei_json_get(json, i, "id");
        const tmoei_special special = {
            tmoei_token_id(ctx, json, place, n ? node->text : "(added)", n),
            tmoei_json_true(json, i, "lstrip"),
            tmoei_json_value(json, i, "special")->kind == TMOEI_JSON_FALSE,
        };
        if (special.id < 0) return;
        if (tmoei_json_true(json, i, "rstrip") || tmoei_json_true(json, i, "single_word"))
            TMOEI_BAD_FORMAT(ctx, "%s: token '%.60s': rstrip and single_word are not supported",
                json->name, node->text);
        if (tmoei_token_put(t, special.id, node->text, n)) tmoei_special_add(t, special);
    }
}

/* The members {"token": id} of a vocabulary, without those whose id an added token has. */
static void tmoei_tokens_read(tmoei_bpe *t, const tmoei_json *json, int tokens)
{
    tmoe_ctx *ctx = t->base.ctx;
    char *bytes = (char *)tmoei_alloc(ctx, TMOEI_TOKEN_BYTES, 1, 0);
    int i = json->nodes[tokens].child;
    for (; ctx->error == TMOE_OK && i >= 0; i = json->nodes[i].next) {
        const tmoei_json_node *node = &json->nodes[i];
        const int id = tmoei_token_id(ctx, json, i, node->key, node->key_length);
        if (id < 0) break;
        if (tmoei_special_of(t, id)) continue;
        const long n = tmoei_token_bytes(node->key, node->key_length, bytes);
        if (id < t->base.vocabulary && t->tokens[id].length)
            TMOEI_BAD_FORMAT(ctx, "%s: two tokens have the id %d", json->name, id);
        else if (n < 0)
            TMOEI_BAD_FORMAT(ctx, "%s: token '%.60s' is not byte-level", json->name, node->key);
        else if (tmoei_token_find(t, bytes, (size_t)n) >= 0)
            TMOEI_BAD_FORMAT(ctx, "%s: two tokens are '%.60s'", json->name, node->key);
        else if (tmoei_token_put(t, id, bytes, (size_t)n))
            (void)tmoei_token_publish(t, id);
    }
    tmoei_free(ctx, bytes);
}

/* A tokenizer without merges from nodes of the JSON; added -1: the special tokens are BART's. */
static tmoei_bpe *tmoei_vocabulary_read(tmoe_ctx *ctx, const tmoei_json *json, int tokens,
    int added)
{
    if (tmoei_json_at(json, tokens)->kind != TMOEI_JSON_OBJECT)
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_FORMAT, "%s: there is no vocabulary", json->name);
    tmoei_bpe *t = tmoei_bpe_begin(ctx);
    if (!t) return NULL;
    tmoei_added_read(t, json, added);
    tmoei_tokens_read(t, json, tokens);
    /* An added token may have the bytes of another one, which then is the one that merges make. */
    for (int i = 0; ctx->error == TMOE_OK && i < t->special_count; i++) {
        const int id = t->specials[i].id;
        if (tmoei_token_find(t, tmoei_token_text(t, id), t->tokens[id].length) < 0)
            (void)tmoei_token_publish(t, id);
    }
    for (int i = 0; ctx->error == TMOE_OK && i < TMOEI_SPECIALS; i++) {
        const char *text = tmoei_special_names[i];
        const int id = tmoei_token_find(t, text, strlen(text));
        const tmoei_special special = { id, i == TMOE_TOKEN_MASK, 0 };
        t->base.specials[i] = id;
        if (id < 0 && i <= TMOE_TOKEN_END)
            TMOEI_BAD_FORMAT(ctx, "%s: the vocabulary has no %s", json->name, text);
        if (id >= 0 && added < 0) tmoei_special_add(t, special);
    }
    for (int b = 0; ctx->error == TMOE_OK && b < 256; b++) {
        if (t->byte_id[b] < 0) t->byte_id[b] = t->base.specials[TMOE_TOKEN_UNKNOWN];
        if (t->byte_id[b] < 0)
            TMOEI_BAD_FORMAT(ctx, "%s: no token for byte %d, and no <unk>", json->name, b);
    }
    return t;
}

/* Adds the merge of two tokens in GPT-2's alphabet; what they make must be a token. */
static void tmoei_merge_read(tmoei_bpe *t, const char *a, size_t length, int separator,
    const char *where)
{
    tmoe_ctx *ctx = t->base.ctx;
    const char *space = length ? (const char *)memchr(a, separator, length) : NULL;
    if (!space) {
        TMOEI_BAD_FORMAT(ctx, "%s is no merge: two tokens, a space between", where);
        return;
    }
    const size_t left = (size_t)(space - a), right = length - left - 1;
    char *bytes = (char *)tmoei_alloc(ctx, length, 1, 0);
    if (!bytes) return;
    const long m = tmoei_token_bytes(a, left, bytes);
    const long n = m < 0 ? -1 : tmoei_token_bytes(space + 1, right, bytes + m);
    tmoei_merge_pair merge = { -1, -1, -1 };
    if (m > 0 && n > 0) {
        merge.left = tmoei_token_find(t, bytes, (size_t)m);
        merge.right = tmoei_token_find(t, bytes + m, (size_t)n);
        merge.result = tmoei_token_find(t, bytes, (size_t)(m + n));
    }
    tmoei_free(ctx, bytes);
    if (merge.left >= 0 && merge.right >= 0 && merge.result >= 0)
        (void)tmoei_merge_add(t, merge);
    else
        TMOEI_BAD_FORMAT(ctx, "%s: '%.*s', '%.*s' and what they make must be tokens", where,
            (int)tmoei_least_size(left, 60), a, (int)tmoei_least_size(right, 60), space + 1);
}

/* Merges are texts "a b", or since tokenizers 0.20 lists ["a", "b"], whose two texts are one behind
 * the other in the JSON's memory with a NUL between. */
static void tmoei_merges_from_json(tmoei_bpe *t, const tmoei_json *json, int merges)
{
    int number = 1, i = json->nodes[merges].child;
    for (; t->base.ctx->error == TMOE_OK && i >= 0; i = json->nodes[i].next) {
        char where[TMOEI_PATH + 32];
        const tmoei_json_node *node = &json->nodes[i];
        const tmoei_json_node *a = tmoei_json_at(json, node->child);
        const tmoei_json_node *b = tmoei_json_at(json, a->next);
        (void)snprintf(where, sizeof where, "%s: merge %d", json->name, number++);
        if (node->kind == TMOEI_JSON_ARRAY && node->count == 2 && a->kind == TMOEI_JSON_STRING
            && b->kind == TMOEI_JSON_STRING)
            tmoei_merge_read(t, a->text, a->length + 1 + b->length, 0, where);
        else
            tmoei_merge_read(t, node->text, node->length, ' ', where);
    }
}

static tmoei_bpe *tmoei_bpe_from_json(tmoe_ctx *ctx, const tmoei_json *json)
{
    static const char *const off[] = { "dropout", "continuing_subword_prefix", "end_of_word_suffix",
        "fuse_unk", "byte_fallback", "ignore_merges" };
    const int model = tmoei_json_get(json, 0, "model");
    const int before = tmoei_json_get(json, 0, "pre_tokenizer");
    const int added = tmoei_json_get(json, 0, "added_tokens");
    const int merges = tmoei_json_get(json, model, "merges");
    if (!tmoei_json_says(tmoei_json_value(json, model, "type"), "BPE")
        || !tmoei_json_says(tmoei_json_value(json, before, "type"), "ByteLevel")
        || tmoei_json_value(json, 0, "normalizer")->kind != TMOEI_JSON_NULL
        || tmoei_json_at(json, merges)->kind != TMOEI_JSON_ARRAY
        || (added >= 0 && json->nodes[added].kind != TMOEI_JSON_ARRAY))
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_FORMAT,
            "%s: not a byte-level BPE with merges, pre_tokenizer ByteLevel and no normalizer",
            json->name);

    /* Settings that would change the ids. */
    const tmoei_json_node *words = tmoei_json_value(json, before, "use_regex");
    const char *refused = words->kind == TMOEI_JSON_FALSE ? "use_regex" : NULL;
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        const tmoei_json_node *node = tmoei_json_value(json, model, off[i]);
        if (node->kind == TMOEI_JSON_TRUE || node->length > 0 || node->number > 0.0)
            refused = off[i];
    }
    if (refused)
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_FORMAT, "%s: its %s is not supported", json->name,
            refused);

    const int tokens = tmoei_json_get(json, model, "vocab");
    tmoei_bpe *t = tmoei_vocabulary_read(ctx, json, tokens, added);
    if (!t) return NULL;
    t->prefix_space = tmoei_json_true(json, before, "add_prefix_space");
    tmoei_merges_from_json(t, json, merges);
    return t;
}

static tmoe_tokenizer *tmoei_tokenizer_from_json(tmoe_ctx *ctx, const tmoei_json *json)
{
    return tmoei_bpe_if_good(tmoei_bpe_from_json(ctx, json));
}

static tmoei_bpe *tmoei_bpe_load_pair(tmoe_ctx *ctx, const char *folder)
{
    char path[TMOEI_PATH];
    tmoei_json json;
    tmoei_bpe *t = NULL;
    if (tmoei_json_file(ctx, &json, path, folder, "vocab.json", 0) == TMOE_OK)
        t = tmoei_vocabulary_read(ctx, &json, 0, -1);
    tmoei_json_free(ctx, &json);
    if (!t) return NULL;
    if (tmoei_folder_has(ctx, path, folder, "added_tokens.json"))
        TMOEI_BAD_FORMAT(ctx, "%s: is not supported; save tokenizer.json", path);
    if (tmoei_path_join(ctx, path, folder, "merges.txt") != TMOE_OK) return t;

    tmoei_lines in;
    tmoei_lines_open(ctx, &in, path);
    while (tmoei_lines_next(&in)) {
        if (in.size == 0 || (in.number == 1 && strncmp(in.line, "#version", 8) == 0)) continue;
        tmoei_merge_read(t, in.line, in.size, ' ', in.where);
    }
    return t;
}

TMOE_DEF tmoe_tokenizer *tmoe_tokenizer_load(tmoe_ctx *ctx, const char *folder)
{
    char path[TMOEI_PATH];
    tmoei_json json;
    tmoei_bpe *t = NULL;
    tmoei_begin(ctx);
    if (tmoei_json_file(ctx, &json, path, folder, "tokenizer.json", 1) == TMOE_OK)
        t = json.count ? tmoei_bpe_from_json(ctx, &json) : tmoei_bpe_load_pair(ctx, folder);
    tmoei_json_free(ctx, &json);
    if (!t) return NULL;

    if (tmoei_json_file(ctx, &json, path, folder, "tokenizer_config.json", 1) == TMOE_OK
        && json.count) {
        const tmoei_json_kind space = tmoei_json_value(&json, 0, "add_prefix_space")->kind;
        if (space != TMOEI_JSON_NULL) t->prefix_space = space == TMOEI_JSON_TRUE;
    }
    tmoei_json_free(ctx, &json);
    return tmoei_bpe_if_good(t);
}

#endif /* TMOE_NO_STDIO */

/* ==== >>suite: tasks, examples, splits ===========================================================
 * A task's lines are collected in a draft, which becomes a task of the suite only when all of it is
 * sound. After the first error, which the context keeps, the functions below add nothing. */

#define TMOEI_BAD_DATA(ctx, ...) tmoei_fail(ctx, TMOE_ERR_DATA, __VA_ARGS__)
#define TMOEI_TASK_LINES_MAX 100000000

typedef struct tmoei_draft { /* a task that is being read */
    tmoe_suite *suite;
    tmoe_task task;      /* what is known of it; test_count -1: 20 %, at least one of two */
    tmoei_buffer text;   /* NUL-terminated strings: "iINPUT", "oOUTPUT", "oOUTPUT", "iINPUT", ... */
    size_t count;        /* lines */
    size_t output_count; /* of all lines */
} tmoei_draft;

TMOE_DEF tmoe_suite *tmoe_suite_create(tmoe_ctx *ctx)
{
    tmoei_begin(ctx);
    tmoe_suite *suite = (tmoe_suite *)tmoei_alloc(ctx, 1, sizeof *suite, 1);
    if (!suite) return NULL;
    suite->ctx = ctx;
    suite->own.ctx = ctx;
    return suite;
}

TMOE_DEF void tmoe_suite_destroy(tmoe_suite *suite)
{
    if (!suite) return;
    tmoei_owner_free(&suite->own);
    tmoei_free(suite->ctx, suite->tasks);
    tmoei_free(suite->ctx, suite);
}

TMOE_DEF int tmoe_suite_count(const tmoe_suite *suite)
{
    return suite->count;
}

TMOE_DEF const tmoe_task *tmoe_suite_task(const tmoe_suite *suite, int i)
{
    return i >= 0 && i < suite->count ? &suite->tasks[i] : NULL;
}

TMOE_DEF int tmoe_suite_find(const tmoe_suite *suite, const char *name)
{
    for (int i = 0; i < suite->count; i++)
        if (strcmp(suite->tasks[i].name, name) == 0) return i;
    return -1;
}

TMOE_DEF const char *tmoe_metric_name(tmoe_metric metric)
{
    static const char *const names[TMOE_METRICS] = { "exact_match", "accuracy", "macro_f1",
        "token_f1", "rouge_l", "matthews", "pearson" };
    return (unsigned)metric < TMOE_METRICS ? names[metric] : "unknown";
}

/* Refuses a text that is empty, not UTF-8 or with a NUL: a saved model could not be read again. */
static void tmoei_text_check(tmoe_ctx *ctx, const char *text, size_t length, const char *where,
    const char *what)
{
    const size_t sound = tmoei_utf8_sound(text, length);
    if (length == 0)
        TMOEI_BAD_DATA(ctx, "%s: the %s is empty", where, what);
    else if (sound < length)
        TMOEI_BAD_DATA(ctx, "%s: the %s is not valid UTF-8 at its byte %lu", where, what,
            (unsigned long)sound + 1);
}

/* A new draft. Without an instruction it is the name with spaces for '_'. */
static void tmoei_draft_begin(tmoe_suite *suite, tmoei_draft *draft, const char *name,
    size_t length, const char *instruction)
{
    memset(draft, 0, sizeof *draft);
    draft->suite = suite;
    draft->task.test_count = -1;
    draft->task.category = "none";
    draft->task.name = tmoei_own_text(&suite->own, name, length);
    const int given = instruction && instruction[0];
    if (given) length = strlen(instruction);
    char *text = tmoei_own_text(&suite->own, given ? instruction : name, length);
    draft->task.instruction = text;
    if (given || !text) return;
    for (; *text; text++)
        if (*text == '_') *text = ' ';
}

/* Adds a text to a draft: a new line's input, or one more output of the last line. */
static void tmoei_draft_add(tmoei_draft *draft, int output, const char *text, size_t length,
    const char *where)
{
    tmoe_ctx *ctx = draft->suite->ctx;
    if (ctx->error) return;
    tmoei_text_check(ctx, text, length, where, output ? "output" : "input");
    ++*(output ? &draft->output_count : &draft->count);
    tmoei_buffer_add(ctx, &draft->text, output ? "o" : "i", 1);
    tmoei_buffer_add(ctx, &draft->text, text, length);
    tmoei_buffer_add(ctx, &draft->text, "", 1);
}

/* The lines of a draft as examples of the suite; NULL without memory. */
static tmoe_example *tmoei_draft_examples(tmoei_draft *draft)
{
    tmoei_owner *own = &draft->suite->own;
    const char *text = tmoei_own_text(own, draft->text.data, draft->text.length);
    const char **answers = TMOEI_OWN(own, const char *, draft->output_count + 1);
    tmoe_example *examples = TMOEI_OWN(own, tmoe_example, draft->count);
    if (!text || !answers || !examples) return NULL;

    for (size_t i = 0; i < draft->count; i++) {
        examples[i].input = text + 1;
        examples[i].outputs = answers;
        text += strlen(text) + 1;
        while (*text == 'o') { /* a NUL ends the last line */
            *answers++ = text + 1;
            examples[i].output_count++;
            text += strlen(text) + 1;
        }
    }
    return examples;
}

/* Turns a sound draft into a task of the suite. The draft is freed in any case. */
static tmoe_result tmoei_draft_finish(tmoei_draft *draft, const char *where)
{
    tmoe_suite *suite = draft->suite;
    tmoe_ctx *ctx = suite->ctx;
    tmoe_task *task = &draft->task;
    tmoe_example *examples = NULL;
    if (!ctx->error) {
        tmoei_text_check(ctx, task->name, strlen(task->name), where, "name");
        tmoei_text_check(ctx, task->category, strlen(task->category), where, "category");
        tmoei_text_check(ctx, task->instruction, strlen(task->instruction), where, "instruction");
        if (draft->count == 0 || draft->count > TMOEI_TASK_LINES_MAX)
            TMOEI_BAD_DATA(ctx, "%s: task %s has %lu lines, must be 1 to %d", where, task->name,
                (unsigned long)draft->count, TMOEI_TASK_LINES_MAX);
        if (tmoe_suite_find(suite, task->name) >= 0)
            TMOEI_BAD_DATA(ctx, "%s: there are two tasks called %s", where, task->name);
    }
    if (!ctx->error
        && tmoei_grow(ctx, &suite->tasks, &suite->capacity, (size_t)suite->count + 1, sizeof *task))
        examples = tmoei_draft_examples(draft);
    if (examples) {
        const int count = (int)draft->count;
        if (task->test_count < 0) task->test_count = count < 5 ? count > 1 : count / 5;
        task->train_count = count - task->test_count;
        task->train = examples;
        task->test = examples + task->train_count;
        suite->tasks[suite->count++] = *task;
    }
    tmoei_buffer_free(ctx, &draft->text);
    return ctx->error;
}

TMOE_DEF tmoe_result tmoe_suite_add(tmoe_suite *suite, const tmoe_task_lines *lines)
{
    const char *name = lines->name;
    tmoei_draft draft;
    char where[64];
    tmoei_begin(suite->ctx);
    if (!name || !name[0] || !lines->instruction || !lines->instruction[0] || !lines->inputs
        || !lines->outputs)
        return tmoei_fail(suite->ctx, TMOE_ERR_ARGUMENT,
            "suite_add: a task needs a name, an instruction, inputs and outputs");
    if (lines->test_count < 0 || lines->test_count >= lines->count)
        return tmoei_fail(suite->ctx, TMOE_ERR_ARGUMENT,
            "suite_add: task %s: count %d, test_count %d; must be 0 <= test_count < count", name,
            lines->count, lines->test_count);
    if ((unsigned)lines->metric >= TMOE_METRICS || (unsigned)lines->part > TMOE_PART_TEST)
        return tmoei_fail(suite->ctx, TMOE_ERR_ARGUMENT,
            "suite_add: task %s: metric %d or part %d is unknown", name, (int)lines->metric,
            (int)lines->part);

    tmoei_draft_begin(suite, &draft, name, strlen(name), lines->instruction);
    if (lines->category)
        draft.task.category = tmoei_own_text(&suite->own, lines->category, strlen(lines->category));
    draft.task.metric = lines->metric;
    draft.task.part = lines->part;
    draft.task.test_count = lines->test_count;
    for (int i = 0; i < lines->count; i++) {
        const char *input = lines->inputs[i] ? lines->inputs[i] : ""; /* is refused */
        const char *output = lines->outputs[i] ? lines->outputs[i] : "";
        (void)snprintf(where, sizeof where, "suite_add: line %d", i + 1);
        tmoei_draft_add(&draft, 0, input, strlen(input), where);
        tmoei_draft_add(&draft, 1, output, strlen(output), where);
    }
    return tmoei_draft_finish(&draft, "suite_add");
}

#ifndef TMOE_NO_STDIO

/* ---- folders ---- */

/* Appends all names of a folder, each with its NUL. Returns their number; -1: no such folder. */
static int tmoei_folder_read(tmoe_ctx *ctx, const char *folder, tmoei_buffer *text)
{
    int count = 0;
#if defined(_WIN32)
    struct _finddata_t found;
    char pattern[TMOEI_PATH];
    (void)snprintf(pattern, sizeof pattern, "%s/*", folder);
    intptr_t handle = _findfirst(pattern, &found);
    if (handle == -1) return -1;
    do {
        tmoei_buffer_add(ctx, text, found.name, strlen(found.name) + 1);
        count++;
    } while (_findnext(handle, &found) == 0);
    (void)_findclose(handle);
#else
    DIR *directory = opendir(folder);
    if (!directory) return -1;
    for (const struct dirent *entry = readdir(directory); entry; entry = readdir(directory)) {
        tmoei_buffer_add(ctx, text, entry->d_name, strlen(entry->d_name) + 1);
        count++;
    }
    (void)closedir(directory);
#endif
    return count;
}

static int tmoei_name_order(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The same as a sorted list in the suite's memory. */
static int tmoei_names(tmoe_suite *suite, const char *folder, char ***names)
{
    tmoei_buffer text = { NULL, 0, 0, 0 };
    const int count = tmoei_folder_read(suite->ctx, folder, &text);
    if (count <= 0) return count;
    char **list = *names = TMOEI_OWN(&suite->own, char *, count);
    char *name = text.failed ? NULL : tmoei_own_text(&suite->own, text.data, text.length);
    tmoei_buffer_free(suite->ctx, &text);
    if (!list || !name) return 0;
    for (int i = 0; i < count; i++) {
        list[i] = name;
        name += strlen(name) + 1;
    }
    qsort(list, (size_t)count, sizeof *list, tmoei_name_order);
    return count;
}

/* Whether a name ends so. Hidden ones, which begin with a point, do not count. */
static int tmoei_ends_with(const char *text, const char *end)
{
    const size_t a = strlen(text), b = strlen(end);
    return text[0] != '.' && a > b && strcmp(text + a - b, end) == 0;
}

/* Adds a line: input TAB output [TAB output ...]. skip: without its empty outputs. */
static void tmoei_read_fields(tmoei_draft *draft, const char *line, size_t size, int skip,
    const char *where)
{
    const char *from = line, *end = line + size;
    while (from <= end) {
        const char *tab = (const char *)memchr(from, '\t', (size_t)(end - from));
        if (!tab) tab = end;
        const int output = from > line;
        if (tab > from || !output || !skip)
            tmoei_draft_add(draft, output, from, (size_t)(tab - from), where);
        from = tab + 1;
    }
}

/* Adds the lines of a TSV file. crossfit: white space around a line does not count, and lines
 * without an answer are left out, as its loader does; so are empty answers. */
static void tmoei_read_tsv(tmoei_draft *draft, const char *path, int crossfit)
{
    tmoei_lines in;
    tmoei_lines_open(draft->suite->ctx, &in, path);
    while (tmoei_lines_next(&in)) {
        const char *line = in.line;
        size_t size = in.size;
        if (crossfit) line = tmoei_strip(line, &size);
        if (memchr(line, '\t', size))
            tmoei_read_fields(draft, line, size, crossfit, in.where);
        else if (!crossfit)
            TMOEI_BAD_DATA(draft->suite->ctx, "%s: no TAB; a line is 'input TAB output'", in.where);
    }
}

static void tmoei_load_tsv_folder(tmoe_suite *suite, const char *folder)
{
    char path[TMOEI_PATH], **names;
    const int count = tmoei_names(suite, folder, &names);
    for (int i = 0; i < count && !suite->ctx->error; i++) {
        const char *name = names[i];
        tmoei_draft draft;
        if (!tmoei_ends_with(name, ".tsv") || strcmp(name, "tasks.tsv") == 0) continue;
        if (tmoei_path_join(suite->ctx, path, folder, name) != TMOE_OK) return;
        tmoei_draft_begin(suite, &draft, name, strlen(name) - strlen(".tsv"), NULL);
        tmoei_read_tsv(&draft, path, 0);
        (void)tmoei_draft_finish(&draft, path);
    }
}

/* TASK/TASK_{k}_{seed}_{train,dev,test}.tsv: only the first sample (k and seed) is read; test lines
 * are the same in all. */
static void tmoei_load_crossfit_task(tmoe_suite *suite, const char *folder, const char *name)
{
    static const char *const ends[3] = { "_dev.tsv", "_train.tsv", "_test.tsv" };
    tmoei_draft draft;
    char path[TMOEI_PATH], **names, file[TMOEI_PATH];
    const char *first = NULL; /* a file of the first sample */
    int sample = 0;           /* bytes of its name that name the sample: TASK_{k}_{seed} */
    const int count = tmoei_names(suite, folder, &names);
    for (int e = 0; e < 3; e++)
        for (int i = 0; i < count && !first; i++)
            if (tmoei_ends_with(names[i], ends[e]) && strncmp(names[i], name, strlen(name)) == 0) {
                first = names[i];
                sample = (int)(strlen(first) - strlen(ends[e]));
            }
    if (!first) return;

    tmoei_draft_begin(suite, &draft, name, strlen(name), NULL);
    for (int e = 0; e < 3; e++) {
        const size_t before = draft.count;
        (void)snprintf(file, sizeof file, "%.*s%s", sample, first, ends[e]);
        if (!tmoei_folder_has(suite->ctx, path, folder, file)) continue;
        tmoei_read_tsv(&draft, path, 1);
        if (e == 2) draft.task.test_count = (int)(draft.count - before); /* its last lines */
    }
    (void)tmoei_draft_finish(&draft, path);
}

/* ---- JSON lines ---- */

typedef struct tmoei_drafts {
    tmoei_draft *items;
    size_t count, capacity;
} tmoei_drafts;

/* The draft of a task, whose lines may be anywhere in the file; NULL without memory. */
static tmoei_draft *tmoei_draft_of(tmoe_suite *suite, tmoei_drafts *drafts, const char *name,
    const char *instruction)
{
    for (size_t d = 0; d < drafts->count; d++)
        if (strcmp(drafts->items[d].task.name, name) == 0) return &drafts->items[d];
    if (!tmoei_grow(suite->ctx, &drafts->items, &drafts->capacity, drafts->count + 1,
            sizeof *drafts->items))
        return NULL;
    tmoei_draft *draft = &drafts->items[drafts->count++];
    tmoei_draft_begin(suite, draft, name, strlen(name), instruction);
    return draft;
}

/* One line: {"task", "instruction" if present, "input", "output": a string or a list of them}. */
static void tmoei_read_json_line(tmoe_suite *suite, tmoei_drafts *drafts, const tmoei_json *json,
    const char *where)
{
    const int task = tmoei_json_get(json, 0, "task");
    const int instruction = tmoei_json_get(json, 0, "instruction");
    const int input = tmoei_json_get(json, 0, "input"), output = tmoei_json_get(json, 0, "output");
    const int list = tmoei_json_at(json, output)->kind == TMOEI_JSON_ARRAY;
    if (!tmoei_json_is_string(json, task) || !tmoei_json_is_string(json, input)
        || (instruction >= 0 && !tmoei_json_is_string(json, instruction))
        || (!list && !tmoei_json_is_string(json, output))) {
        TMOEI_BAD_DATA(suite->ctx,
            "%s: needs strings \"task\", \"input\", \"output\" (or a list), \"instruction\" if any",
            where);
        return;
    }
    const tmoei_json_node *nodes = json->nodes, *text = &nodes[input];
    tmoei_draft *draft =
        tmoei_draft_of(suite, drafts, nodes[task].text, tmoei_json_at(json, instruction)->text);
    if (!draft) return;
    tmoei_draft_add(draft, 0, text->text, text->length, where);
    int o = list ? nodes[output].child : output;
    if (o < 0) TMOEI_BAD_DATA(suite->ctx, "%s: the list of outputs is empty", where);
    for (; o >= 0; o = list ? nodes[o].next : -1) {
        if (tmoei_json_is_string(json, o))
            tmoei_draft_add(draft, 1, nodes[o].text, nodes[o].length, where);
        else
            TMOEI_BAD_DATA(suite->ctx, "%s: an output is not a string", where);
    }
}

static void tmoei_load_jsonl(tmoe_suite *suite, const char *path)
{
    tmoei_drafts drafts = { NULL, 0, 0 };
    tmoei_lines in;
    tmoei_lines_open(suite->ctx, &in, path);
    while (tmoei_lines_next(&in)) {
        tmoei_json json;
        if (tmoei_json_parse(suite->ctx, &json, in.line, in.size, in.where) == TMOE_OK)
            tmoei_read_json_line(suite, &drafts, &json, in.where);
        tmoei_json_free(suite->ctx, &json);
    }
    for (size_t d = 0; d < drafts.count; d++) (void)tmoei_draft_finish(&drafts.items[d], path);
    tmoei_free(suite->ctx, drafts.items);
}

/* ---- tasks.tsv ---- */

enum {
    TMOEI_NAME,
    TMOEI_CATEGORY,
    TMOEI_METRIC,
    TMOEI_INSTRUCTION,
    TMOEI_LABELS,
    TMOEI_TASK_COLUMNS
};

static const char *const tmoei_column_names[TMOEI_TASK_COLUMNS] = { "name", "category", "metric",
    "instruction", "labels" }; /* in the first line, in any order */

/* Ends the field that *rest begins with at the separator and moves *rest behind that. Returns NULL
 * behind the last field. */
static char *tmoei_cut(char **rest, char separator)
{
    char *field = *rest, *end = field ? strchr(field, separator) : NULL;
    *rest = end ? end + 1 : NULL;
    if (end) *end = 0;
    return field;
}

/* The closed set "a|b|c" of a task: no label is empty or there twice, and each answer is one. */
static void tmoei_read_labels(tmoe_suite *suite, tmoe_task *task, char *text, const char *where)
{
    const char **labels = TMOEI_OWN(&suite->own, const char *, strlen(text) + 2);
    int count = 0;
    if (!labels) return;
    for (char *label = tmoei_cut(&text, '|'); label; label = tmoei_cut(&text, '|')) {
        tmoei_text_check(suite->ctx, label, strlen(label), where, "label");
        for (int i = 0; i < count; i++)
            if (strcmp(labels[i], label) == 0)
                TMOEI_BAD_DATA(suite->ctx, "%s: label '%s' is there twice", where, label);
        labels[count++] = label;
    }
    task->labels = labels;
    task->label_count = count;

    for (int i = 0; i < task->train_count + task->test_count; i++) {
        const char *answer = task->train[i].outputs[0]; /* test lines lie behind those of train */
        int known = 0;
        for (int l = 0; l < count; l++) known = known || strcmp(answer, labels[l]) == 0;
        if (!known) TMOEI_BAD_DATA(suite->ctx, "%s: '%s' is no label", where, answer);
    }
}

/* One row's fields, NULL where one is absent or empty. Rows of other tasks are ignored. */
static void tmoei_describe_task(tmoe_suite *suite, char *const *field, const char *where)
{
    const char *name = field[TMOEI_NAME], *wanted = field[TMOEI_METRIC];
    const int known = name ? tmoe_suite_find(suite, name) : -1;
    int metric = TMOE_METRIC_EXACT_MATCH;
    while (wanted && metric < TMOE_METRICS
        && strcmp(wanted, tmoe_metric_name((tmoe_metric)metric)) != 0)
        metric++;
    if (metric == TMOE_METRICS)
        TMOEI_BAD_DATA(suite->ctx, "%s: unknown metric '%s'", where, wanted);
    for (int c = 0; known >= 0 && c < TMOEI_TASK_COLUMNS; c++)
        if (field[c])
            tmoei_text_check(suite->ctx, field[c], strlen(field[c]), where, tmoei_column_names[c]);
    if (known < 0 || suite->ctx->error) return;

    tmoe_task *task = &suite->tasks[known];
    task->metric = (tmoe_metric)metric;
    if (field[TMOEI_CATEGORY]) task->category = field[TMOEI_CATEGORY];
    if (field[TMOEI_INSTRUCTION]) task->instruction = field[TMOEI_INSTRUCTION];
    if (field[TMOEI_LABELS]) tmoei_read_labels(suite, task, field[TMOEI_LABELS], where);
}

static void tmoei_describe(tmoe_suite *suite, const char *path)
{
    int column_of[TMOEI_TASK_COLUMNS]; /* -1: the file has no such column */
    for (int c = 0; c < TMOEI_TASK_COLUMNS; c++) column_of[c] = -1;

    tmoei_lines in;
    tmoei_lines_open(suite->ctx, &in, path);
    while (tmoei_lines_next(&in)) {
        char *field[TMOEI_TASK_COLUMNS] = { NULL };
        char *rest = tmoei_own_text(&suite->own, in.line, in.size);
        int column = 0;
        for (char *text = tmoei_cut(&rest, '\t'); text; text = tmoei_cut(&rest, '\t')) {
            for (int c = 0; c < TMOEI_TASK_COLUMNS; c++) {
                if (in.number == 1 && strcmp(text, tmoei_column_names[c]) == 0)
                    column_of[c] = column;
                if (in.number > 1 && column_of[c] == column && text[0]) field[c] = text;
            }
            column++;
        }
        if (column_of[TMOEI_NAME] < 0)
            TMOEI_BAD_DATA(suite->ctx,
                "%s: the first line must name the columns, one of them 'name'", in.where);
        if (in.number > 1) tmoei_describe_task(suite, field, in.where);
    }
}

static void tmoei_load_folder(tmoe_suite *suite, const char *folder)
{
    tmoe_ctx *ctx = suite->ctx;
    char path[TMOEI_PATH], **names;
    errno = 0;
    const int count = tmoei_names(suite, folder, &names);
    if (count < 0)
        tmoei_fail(ctx, TMOE_ERR_FILE, "%s: is not a folder that can be read: %s", folder,
            strerror(errno));
    else
        tmoei_load_tsv_folder(suite, folder);

    for (int i = 0; i < count && !ctx->error; i++) {
        if (names[i][0] == '.' || tmoei_path_join(ctx, path, folder, names[i]) != TMOE_OK) continue;
        if (tmoei_ends_with(names[i], ".jsonl"))
            tmoei_load_jsonl(suite, path);
        else if (strcmp(names[i], "tasks") == 0)
            tmoei_load_tsv_folder(suite, path);
        else if (strcmp(names[i], "splits") != 0)
            tmoei_load_crossfit_task(suite, path, names[i]);
    }

    if (!ctx->error && tmoei_folder_has(ctx, path, folder, "tasks.tsv"))
        tmoei_describe(suite, path);
    if (suite->count == 0)
        TMOEI_BAD_DATA(ctx,
            "%s: no tasks: neither NAME.tsv, nor TASK/TASK_*_train.tsv, nor *.jsonl", folder);
}

/* ---- splits ---- */

/* Sets the part of the tasks in one list of a split. named[i]: task i is in a list already. */
static void tmoei_split_part(tmoe_suite *suite, const tmoei_json *json, tmoe_part part, char *named,
    const char *path)
{
    static const char *const keys[] = { "train", "dev", "test" }; /* by tmoe_part */
    char unknown[TMOEI_PROBLEM_BYTES] = "";
    const tmoei_json_node *list = tmoei_json_value(json, 0, keys[part]);
    if (json->nodes[0].kind != TMOEI_JSON_OBJECT
        || (list->kind != TMOEI_JSON_NULL && list->kind != TMOEI_JSON_ARRAY))
        TMOEI_BAD_FORMAT(suite->ctx,
            "%s: a split is {\"train\": [], \"dev\": [], \"test\": []}, lists of task names", path);
    for (int node = list->child; node >= 0 && !suite->ctx->error; node = json->nodes[node].next) {
        const int string = tmoei_json_is_string(json, node);
        const char *name = string ? json->nodes[node].text : "(not a string)";
        const int i = tmoe_suite_find(suite, name);
        if (i < 0) {
            tmoei_problem(unknown, sizeof unknown, "%s", name);
            continue;
        }
        if (named[i]) TMOEI_BAD_DATA(suite->ctx, "%s: task %s is named twice", path, name);
        named[i] = 1;
        suite->tasks[i].part = part;
    }
    if (unknown[0])
        TMOEI_BAD_DATA(suite->ctx, "%s: the folder has no task called: %s", path, unknown);
}

/* Sets the tasks' parts and removes those that the split does not name. */
static void tmoei_apply_split(tmoe_suite *suite, const char *path)
{
    char *named = TMOEI_OWN(&suite->own, char, suite->count + 1);
    tmoei_json json;
    if (!named || tmoei_json_read(suite->ctx, &json, path) != TMOE_OK) return;
    for (int part = TMOE_PART_TRAIN; part <= TMOE_PART_TEST; part++)
        tmoei_split_part(suite, &json, (tmoe_part)part, named, path);
    tmoei_json_free(suite->ctx, &json);

    int kept = 0;
    for (int i = 0; i < suite->count; i++)
        if (named[i]) suite->tasks[kept++] = suite->tasks[i];
    suite->count = kept;
}

/* The file of a split: `split` if it is a path, else FOLDER/splits/NAME.json, written into path.
 * NULL if the caller names none and there is no zero_shot. */
static const char *tmoei_split_path(tmoe_ctx *ctx, char *path, const char *folder,
    const char *split)
{
    char name[TMOEI_PATH];
    if (split && strchr(split, '/')) return split;
    const int length = snprintf(name, sizeof name, "splits/%s.json", split ? split : "zero_shot");
    if (length >= TMOEI_PATH) return split;
    if (tmoei_folder_has(ctx, path, folder, name)) return path;
    return split && !strchr(split, '.') ? path : split; /* the message names what is missing */
}

TMOE_DEF tmoe_suite *tmoe_suite_load(tmoe_ctx *ctx, const char *folder, const char *split)
{
    char path[TMOEI_PATH];
    tmoe_suite *suite = tmoe_suite_create(ctx);
    if (!suite) return NULL;
    tmoei_load_folder(suite, folder);
    const char *file = ctx->error ? NULL : tmoei_split_path(ctx, path, folder, split);
    if (file && !ctx->error) tmoei_apply_split(suite, file);
    if (!ctx->error) return suite;
    tmoe_suite_destroy(suite);
    return NULL;
}

#endif /* TMOE_NO_STDIO */

/* ==== >>onecall: from a suite to a trained model in one call ================================== */

TMOE_DEF tmoe_tokenizer *tmoe_suite_tokenizer(tmoe_ctx *ctx, const tmoe_suite *suite,
    int vocabulary)
{
    size_t count = 0, most = 1;
    tmoei_begin(ctx);
    if (vocabulary == 0) return tmoe_tokenizer_bytes(ctx);

    for (int s = 0; s < suite->count; s++) most += 3 * (size_t)suite->tasks[s].train_count;
    const char **texts = (const char **)tmoei_alloc(ctx, most, sizeof *texts, 0);
    if (!texts) return NULL;
    for (int s = 0; s < suite->count; s++) {
        const tmoe_task *task = &suite->tasks[s];
        if (task->part != TMOE_PART_TRAIN) continue;
        for (int i = 0; i < task->train_count; i++) {
            texts[count++] = task->instruction; /* as often as the encoder reads it */
            texts[count++] = task->train[i].input;
            texts[count++] = task->train[i].outputs[0];
        }
    }
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_train(ctx, texts, count, vocabulary);
    tmoei_free(ctx, (void *)texts);
    return tokenizer;
}

TMOE_DEF tmoe_result tmoe_suite_fit(tmoe_ctx *ctx, const tmoe_suite *suite,
    const tmoe_tokenizer *tokenizer, tmoe_config *config)
{
    const int find = config->specials_in_text;
    size_t source = 3, target = 2, n; /* the least that a model takes: <s> x </s>, and y </s> */
    tmoei_begin(ctx);
    for (int s = 0; s < suite->count; s++) {
        const tmoe_task *task = &suite->tasks[s];
        const char *before = config->task_input & TMOE_TASK_TEXT ? task->instruction : NULL;
        const tmoe_example *end = task->train + task->train_count + task->test_count;
        for (const tmoe_example *line = task->train; line < end; line++) { /* test lines, too */
            TMOEI_TRY(tmoei_encode_source(tokenizer, before, line->input, find, NULL, 0, &n));
            if (n > source) source = n;
            for (int o = 0; o < line->output_count; o++) {
                TMOEI_TRY(
                    tmoei_encode_source(tokenizer, NULL, line->outputs[o], find, NULL, 0, &n));
                if (n > target) target = n;
            }
        }
    }
    config->source_tokens = (int)source;
    config->target_tokens = (int)target;
    return TMOE_OK;
}

static tmoe_config tmoei_config_from(const tmoe_config *config, const tmoe_model *start)
{
    if (config) return *config;
    if (start) return start->config;
    return tmoe_config_default();
}

/* A model for the suite's training tasks: start's layers, or random ones and the suite's tokens. */
static tmoe_model *tmoei_train_model(tmoe_ctx *ctx, const tmoe_suite *suite,
    const tmoe_model *start, tmoe_config c, int vocabulary)
{
    tmoe_model *model = NULL;
    int count = 0;
    tmoe_task *tasks = (tmoe_task *)tmoei_alloc(ctx, (size_t)suite->count + 1, sizeof *tasks, 0);
    if (!tasks) return NULL;
    for (int s = 0; s < suite->count; s++)
        if (suite->tasks[s].part == TMOE_PART_TRAIN) tasks[count++] = suite->tasks[s];

    if (start) {
        c.source_tokens = start->config.source_tokens;
        c.target_tokens = start->config.target_tokens;
        c.vocabulary = start->config.vocabulary;
        model = tmoe_model_derive(ctx, start, NULL, &c, tasks, count);
    } else {
        tmoe_tokenizer *tokenizer = tmoe_suite_tokenizer(ctx, suite, vocabulary);
        const int source = c.source_tokens, target = c.target_tokens;
        if (tokenizer && (source == 0 || target == 0))
            (void)tmoe_suite_fit(ctx, suite, tokenizer, &c);
        if (source != 0) c.source_tokens = source;
        if (target != 0) c.target_tokens = target;
        if (!ctx->error) model = tmoe_model_create(ctx, &c, tokenizer, tasks, count);
        tmoe_tokenizer_destroy(tokenizer);
    }
    tmoei_free(ctx, tasks);
    return model;
}

TMOE_DEF tmoe_model *tmoe_train_from(tmoe_ctx *ctx, const tmoe_suite *suite,
    const tmoe_model *start, const tmoe_model *router, const tmoe_config *config,
    const tmoe_training *training)
{
    const tmoe_config c = tmoei_config_from(config, start);
    const tmoe_training t = training ? *training : tmoe_training_default();
    tmoei_begin(ctx);
    tmoe_model *model = tmoei_train_model(ctx, suite, start, c, t.vocabulary);
    if (!model) return NULL;
    if (router) (void)tmoe_model_take_router(model, router);

    tmoe_trainer *trainer = tmoe_trainer_create(model, suite, &t);
    const int good = trainer && tmoe_trainer_run(trainer) == TMOE_OK;
    tmoe_trainer_destroy(trainer);
    return tmoei_model_if(good, model);
}

TMOE_DEF tmoe_model *tmoe_train(tmoe_ctx *ctx, const tmoe_suite *suite, const tmoe_config *config,
    const tmoe_training *training)
{
    return tmoe_train_from(ctx, suite, NULL, NULL, config, training);
}

TMOE_DEF tmoe_model *tmoe_train_two_stages(tmoe_ctx *ctx, const tmoe_suite *suite,
    const tmoe_model *start, const tmoe_config *config, const tmoe_training *stage1,
    const tmoe_training *stage2)
{
    tmoe_config c = tmoei_config_from(config, start);
    tmoe_training t2 = stage2 ? *stage2 : tmoe_training_default();
    const tmoe_training t1 = stage1 ? *stage1 : t2;

    c.selection = TMOE_SELECT_STRAIGHT_THROUGH;
    c.temperature = 2.0f;
    c.temperature_min = 0.1f;
    c.temperature_decay = (float)(log(20.0) * 3.0 / t1.steps); /* the paper: 3e-4, 30,000 steps */
    tmoe_model *first = tmoe_train_from(ctx, suite, start, NULL, &c, &t1);
    if (!first) return NULL;

    c.selection = TMOE_SELECT_SOFTMAX;
    c.temperature = 300.0f;
    c.temperature_min = 1.0f;
    c.temperature_decay = (float)(log(300.0) / (0.95 * t2.steps)); /* 1e-4, 60,000 steps */
    t2.train &= TMOE_TRAIN_MODEL;
    t2.alternate_steps = 0; /* there are no turns of the router */
    tmoe_model *second = tmoe_train_from(ctx, suite, start, first, &c, &t2);
    tmoe_model_destroy(first);
    return second;
}

#ifndef TMOE_NO_EVALUATION /* up to the end of >>fewshot */
/* ==== >>metrics: scores by CrossFit's rules ======================================================
 * The rules are those of the reference's code, oddities included: only then can a score be compared
 * with a published one. */

/* Lower case of Latin, Greek and Cyrillic letters; other alphabets are left alone. */
static uint32_t tmoei_lower_code(uint32_t c)
{
    if (c < 128) return tmoei_lower((unsigned char)c);
    if ((c >= 0xc0 && c <= 0xde && c != 0xd7) || (c >= 0x391 && c <= 0x3a9)
        || (c >= 0x410 && c <= 0x42f))
        return c + 32;
    if (c >= 0x400 && c <= 0x40f) return c + 80;
    if (c < 0x100 || c >= 0x17f || c == 0x130 || c == 0x138 || c == 0x149 || c == 0x178) return c;
    /* Pairs. The odd code is the small letter, except in two runs, where the even one is. */
    const uint32_t even_small = (c >= 0x139 && c <= 0x148) || (c >= 0x179 && c <= 0x17e);
    return (c & 1u) == even_small ? c + 1 : c;
}

/* Appends text in lower case and a NUL. Returns where it begins in the buffer. */
static size_t tmoei_add_lower(tmoe_ctx *ctx, tmoei_buffer *buffer, const char *text)
{
    const size_t begin = buffer->length, length = strlen(text);
    size_t bytes;
    for (size_t at = 0; at < length; at += bytes) {
        uint32_t code = 0;
        char out[4];
        bytes = tmoei_utf8_next(text, length, at, &code);
        if (bytes > 0) {
            tmoei_buffer_add(ctx, buffer, out, tmoei_utf8_put(tmoei_lower_code(code), out));
        } else { /* no UTF-8: the byte as it is */
            bytes = 1;
            tmoei_buffer_add(ctx, buffer, text + at, bytes);
        }
    }
    tmoei_buffer_add(ctx, buffer, "", 1);
    return begin;
}

typedef struct tmoei_text_word {
    const char *text;
    size_t length;
} tmoei_text_word;

/* The next word of a text, up to white space. Its length is 0 at the end of the text. */
static tmoei_text_word tmoei_next_word(const char *text)
{
    static const char space[] = " \t\n\v\f\r";
    tmoei_text_word word;
    word.text = text + strspn(text, space);
    word.length = strcspn(word.text, space);
    return word;
}

static int tmoei_same_word(tmoei_text_word a, tmoei_text_word b)
{
    return a.length == b.length && memcmp(a.text, b.text, a.length) == 0;
}

static int tmoei_is_word(tmoei_text_word word, const char *text)
{
    return word.length == strlen(text) && memcmp(word.text, text, word.length) == 0;
}

/* Appends the normal form of text: lower case, no ASCII punctuation, no a/an/the, single spaces. */
static size_t tmoei_add_normal(tmoe_ctx *ctx, tmoei_buffer *buffer, const char *text)
{
    const size_t begin = tmoei_add_lower(ctx, buffer, text);
    size_t n = begin;
    if (buffer->failed) return begin;

    /* both passes write where they have read already, as nothing becomes longer */
    for (size_t i = begin; i < buffer->length; i++) {
        const unsigned char c = (unsigned char)buffer->data[i];
        if (c <= ' ' || c >= 127 || tmoei_is_word_byte(c)) buffer->data[n++] = (char)c;
    }
    char *end = buffer->data + begin;
    tmoei_text_word word = tmoei_next_word(end);
    for (; word.length; word = tmoei_next_word(word.text + word.length)) {
        if (tmoei_is_word(word, "a") || tmoei_is_word(word, "an") || tmoei_is_word(word, "the"))
            continue;
        if (end > buffer->data + begin) *end++ = ' ';
        memmove(end, word.text, word.length);
        end += word.length;
    }
    *end = 0;
    buffer->length = (size_t)(end - buffer->data) + 1;
    return begin;
}

#define TMOEI_WORDS_MAX 512 /* longer texts count by their first words */
#define TMOEI_SENTENCES_MAX 64

typedef struct tmoei_words {
    tmoei_text_word word[TMOEI_WORDS_MAX];
    int count;
} tmoei_words;

/* Adds the words from text up to end, which may cut the last one. */
static void tmoei_words_add(tmoei_words *words, const char *text, const char *end)
{
    while (words->count < TMOEI_WORDS_MAX) {
        tmoei_text_word word = tmoei_next_word(text);
        if (word.length == 0 || word.text >= end) return;
        text = word.text + word.length;
        if (text > end) word.length = (size_t)(end - word.text);
        words->word[words->count++] = word;
    }
}

/* F1 of the words of two normal texts, as bags: 2 common / (words of a + words of b). */
static double tmoei_token_f1(const char *prediction, const char *answer, tmoei_words *a,
    tmoei_words *b)
{
    int common = 0;
    a->count = b->count = 0;
    tmoei_words_add(a, prediction, prediction + strlen(prediction));
    tmoei_words_add(b, answer, answer + strlen(answer));
    for (int i = 0; i < a->count; i++)
        for (int j = 0; j < b->count; j++)
            if (tmoei_same_word(a->word[i], b->word[j])) {
                b->word[j].length = 0; /* counts once */
                common++;
                break;
            }
    return common ? 2.0 * common / (a->count + b->count) : 0.0;
}

/* The number of distinct words of a list, or of its marked ones (marked may be NULL: all). */
static int tmoei_distinct(const tmoei_words *w, const char *marked)
{
    int count = 0;
    for (int i = 0; i < w->count; i++) {
        int fresh = !marked || marked[i];
        for (int j = 0; fresh && j < i; j++)
            if ((!marked || marked[j]) && tmoei_same_word(w->word[i], w->word[j])) fresh = 0;
        count += fresh;
    }
    return count;
}

/* Lists the words of all sentences, which full stops separate. ends[s] is the number of words up to
 * the end of sentence s. Returns the number of sentences. */
static int tmoei_sentences(const char *text, tmoei_words *all, int *ends)
{
    int sentences = 0;
    all->count = 0;
    while (*text && sentences < TMOEI_SENTENCES_MAX) {
        const char *end = text + strcspn(text, ".");
        if (end > text) {
            const int before = all->count;
            tmoei_words_add(all, text, end);
            /* the reference sees one empty word in a blank sentence */
            const tmoei_text_word empty = { end, 0 };
            if (all->count == before && before < TMOEI_WORDS_MAX) all->word[all->count++] = empty;
            ends[sentences++] = all->count;
        }
        text = *end ? end + 1 : end;
    }
    return sentences;
}

/* Scratch of Rouge-L. The first row and column of the table stay 0. */
typedef struct tmoei_rouge {
    tmoei_words a, b; /* of the prediction, of the answer */
    int a_ends[TMOEI_SENTENCES_MAX], b_ends[TMOEI_SENTENCES_MAX];
    char in_union[TMOEI_WORDS_MAX]; /* words of the answer */
    unsigned short table[TMOEI_WORDS_MAX + 1][TMOEI_WORDS_MAX + 1];
} tmoei_rouge;

/* Marks the words b_1 ... b_m of the answer's sentence s that are on one longest common subsequence
 * with the words a_1 ... a_n of the prediction's sentence t:
 *   table(i, j) = table(i-1, j-1) + 1                    where b_i = a_j
 *                 max(table(i-1, j), table(i, j-1))      elsewhere */
static void tmoei_rouge_mark(tmoei_rouge *w, int s, int t)
{
    const int a_first = t ? w->a_ends[t - 1] : 0, n = w->a_ends[t] - a_first;
    const int b_first = s ? w->b_ends[s - 1] : 0, m = w->b_ends[s] - b_first;
    const tmoei_text_word *a = w->a.word + a_first, *b = w->b.word + b_first;
    char *marked = w->in_union + b_first;

    for (int i = 1; i <= m; i++)
        for (int j = 1; j <= n; j++) {
            const unsigned short up = w->table[i - 1][j], left = w->table[i][j - 1];
            if (tmoei_same_word(b[i - 1], a[j - 1]))
                w->table[i][j] = (unsigned short)(w->table[i - 1][j - 1] + 1);
            else
                w->table[i][j] = up > left ? up : left;
        }

    int i = m, j = n; /* back along the subsequence */
    while (i > 0 && j > 0) {
        if (tmoei_same_word(b[i - 1], a[j - 1])) {
            marked[i - 1] = 1;
            i--;
            j--;
        } else if (w->table[i - 1][j] > w->table[i][j - 1])
            i--;
        else
            j--;
    }
}

/* Rouge-L of summaries (Lin 2004). For each sentence of the answer, the union over the prediction's
 * sentences of the words on a longest common subsequence. Over distinct words
 *   p = common / prediction's,  r = common / answer's,  f = 2 p r / (p + r + 1e-8) */
static double tmoei_rouge_l(const char *prediction, const char *answer, tmoei_rouge *w)
{
    const int a_sentences = tmoei_sentences(prediction, &w->a, w->a_ends);
    const int b_sentences = tmoei_sentences(answer, &w->b, w->b_ends);
    memset(w->in_union, 0, sizeof w->in_union);
    for (int s = 0; s < b_sentences; s++)
        for (int t = 0; t < a_sentences; t++) tmoei_rouge_mark(w, s, t);

    const int common = tmoei_distinct(&w->b, w->in_union);
    if (!common) return 0.0;
    const double p = (double)common / tmoei_distinct(&w->a, NULL);
    const double r = (double)common / tmoei_distinct(&w->b, NULL);
    return 2.0 * p * r / (p + r + 1e-8);
}

/* ---- scores over a whole task ---- */

/* Text i of a list of 2 * count: the first answers, then the predictions. */
static const char *tmoei_given_text(const char *const *predictions, const tmoe_example *examples,
    int count, int i)
{
    return i < count ? examples[i].outputs[0] : predictions[i - count];
}

/* Mean over the distinct texts of their F1 = 2 both / (predicted + right). */
static double tmoei_macro_f1(const char *const *predictions, const tmoe_example *examples,
    int count)
{
    double sum = 0.0;
    int labels = 0;
    for (int i = 0; i < 2 * count; i++) {
        const char *label = tmoei_given_text(predictions, examples, count, i);
        int both = 0, predicted = 0, right = 0, seen = 0;
        for (int j = 0; j < i && !seen; j++)
            seen = strcmp(tmoei_given_text(predictions, examples, count, j), label) == 0;
        if (seen) continue;
        for (int j = 0; j < count; j++) {
            const int p = strcmp(predictions[j], label) == 0;
            const int r = strcmp(examples[j].outputs[0], label) == 0;
            both += p && r;
            predicted += p;
            right += r;
        }
        sum += 2.0 * both / (double)(predicted + right);
        labels++;
    }
    return sum / labels;
}

static int tmoei_is_acceptable(const char *text)
{
    const tmoei_text_word word = tmoei_next_word(text);
    return tmoei_is_word(word, "acceptable") && !tmoei_next_word(word.text + word.length).length;
}

/* A decimal number with nothing but white space around it, else 3. */
static double tmoei_number_or_three(const char *text)
{
    char *end;
    const double x = strtod(text, &end);
    const int hexadecimal = strpbrk(text, "xXpP(") != NULL; /* is no number to the reference */
    if (end == text || hexadecimal || tmoei_next_word(end).length > 0) return 3.0;
    return x;
}

static int tmoei_is_nan(double x)
{
    return x != x;
}

/* r = sum (x - mx) (y - my) / sqrt(sum (x - mx)^2 sum (y - my)^2); NaN where one side is constant.
 * Of zeros and ones it is Matthews' coefficient,
 *   (tp tn - fp fn) / sqrt((tp+fp) (tp+fn) (tn+fp) (tn+fn)) */
static double tmoei_pearson(const double *x, const double *y, int count)
{
    double mx = 0.0, my = 0.0, xy = 0.0, xx = 0.0, yy = 0.0;
    int x_varies = 0, y_varies = 0; /* the sums of squares of a constant may be rounding, not 0 */
    for (int i = 0; i < count; i++) {
        mx += x[i] / count;
        my += y[i] / count;
        x_varies |= x[i] != x[0];
        y_varies |= y[i] != y[0];
    }
    for (int i = 0; i < count; i++) {
        xy += (x[i] - mx) * (y[i] - my);
        xx += (x[i] - mx) * (x[i] - mx);
        yy += (y[i] - my) * (y[i] - my);
    }
    return x_varies && y_varies ? xy / sqrt(xx * yy) : (double)NAN;
}

/* Score against one accepted answer; buffer and w are scratch. */
static double tmoei_pair_score(tmoe_ctx *ctx, tmoe_metric metric, const char *prediction,
    const char *answer, tmoei_buffer *buffer, tmoei_rouge *w)
{
    if (metric == TMOE_METRIC_ROUGE_L) return tmoei_rouge_l(prediction, answer, w);
    size_t (*add)(tmoe_ctx *, tmoei_buffer *, const char *) = tmoei_add_normal;
    if (metric == TMOE_METRIC_ACCURACY) add = tmoei_add_lower;
    buffer->length = 0;
    const size_t p = add(ctx, buffer, prediction), a = add(ctx, buffer, answer);
    if (buffer->failed) return 0.0;
    if (metric == TMOE_METRIC_TOKEN_F1)
        return tmoei_token_f1(buffer->data + p, buffer->data + a, &w->a, &w->b);
    return strcmp(buffer->data + p, buffer->data + a) == 0;
}

/* Mean over the predictions of the best score over their accepted answers. */
static double tmoei_mean_score(tmoe_ctx *ctx, tmoe_metric metric, const char *const *predictions,
    const tmoe_example *examples, int count)
{
    tmoei_buffer text = { NULL, 0, 0, 0 };
    double sum = 0.0;
    tmoei_rouge *rouge = (tmoei_rouge *)tmoei_alloc(ctx, 1, sizeof *rouge, 1);
    for (int i = 0; rouge && i < count; i++) {
        double best = 0.0;
        for (int o = 0; o < examples[i].output_count; o++) {
            const char *answer = examples[i].outputs[o];
            best = fmax(best, tmoei_pair_score(ctx, metric, predictions[i], answer, &text, rouge));
        }
        sum += best;
    }
    tmoei_free(ctx, rouge);
    tmoei_buffer_free(ctx, &text);
    return sum / count;
}

/* Pearson's correlation of the numbers in the texts, or (Matthews') of "acceptable" in them. */
static double tmoei_correlation_score(tmoe_ctx *ctx, tmoe_metric metric,
    const char *const *predictions, const tmoe_example *examples, int count)
{
    const int pearson = metric == TMOE_METRIC_PEARSON;
    double *numbers = (double *)tmoei_alloc(ctx, 2 * (size_t)count, sizeof *numbers, 0);
    if (!numbers) return 0.0;
    for (int i = 0; i < 2 * count; i++) {
        const char *text = tmoei_given_text(predictions, examples, count, i);
        numbers[i] = pearson ? tmoei_number_or_three(text) : tmoei_is_acceptable(text);
    }
    const double r = tmoei_pearson(numbers, numbers + count, count);
    tmoei_free(ctx, numbers);
    return tmoei_is_nan(r) && !pearson ? 0.0 : r; /* CrossFit's rule */
}

TMOE_DEF tmoe_result tmoe_score(tmoe_ctx *ctx, tmoe_metric metric, const char *const *predictions,
    const tmoe_example *examples, int count, double *score)
{
    double value;
    tmoei_begin(ctx);
    if (count < 1 || (unsigned)metric >= TMOE_METRICS)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "score: %d predictions, must be at least 1, or metric %d is unknown", count,
            (int)metric);
    if (metric == TMOE_METRIC_PEARSON || metric == TMOE_METRIC_MATTHEWS)
        value = tmoei_correlation_score(ctx, metric, predictions, examples, count);
    else if (metric == TMOE_METRIC_MACRO_F1)
        value = tmoei_macro_f1(predictions, examples, count);
    else
        value = tmoei_mean_score(ctx, metric, predictions, examples, count);
    if (!ctx->error) *score = value;
    return ctx->error;
}

static int tmoei_double_order(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Mean of new - base, or of (new - base) / base, over all tasks (draw 0) or over as many that a
 * draw picks with replacement. NaN where it is undefined for all of them. */
static double tmoei_mean_gain(const double *base, const double *scores, int count, int relative,
    uint64_t seed, int draw)
{
    const uint64_t stream = TMOEI_STREAM_RESAMPLE | (uint64_t)draw;
    double sum = 0.0;
    int used = 0;
    for (int i = 0; i < count; i++) {
        int t = i;
        if (draw > 0) t = (int)tmoei_below(tmoei_random(seed, stream, (uint64_t)i), (size_t)count);
        const double gain = scores[t] - base[t];
        if (tmoei_is_nan(gain) || (relative && base[t] <= 0.0)) continue;
        sum += relative ? gain / base[t] : gain;
        used++;
    }
    return used ? sum / used : (double)NAN;
}

#define TMOEI_RESAMPLINGS 2000 /* the ends of the interval then move by some 1 % of its width */

TMOE_DEF tmoe_result tmoe_compare(tmoe_ctx *ctx, const double *base, const double *scores,
    int count, uint64_t seed, tmoe_comparison *result)
{
    double sample[TMOEI_RESAMPLINGS];
    tmoei_begin(ctx);
    if (count < 0)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "compare: %d tasks; at least 0", count);
    memset(result, 0, sizeof *result);
    for (int t = 0; t < count; t++) {
        if (tmoei_is_nan(scores[t]) || tmoei_is_nan(base[t])) {
            result->undefined++;
            continue;
        }
        result->zero_base += base[t] <= 0.0;
        result->wins += scores[t] > base[t];
        result->losses += scores[t] < base[t];
        result->ties += scores[t] == base[t];
    }

    for (int relative = 0; relative < 2; relative++) {
        double *gain = relative ? result->relative_gain : result->difference;
        int n = 0;
        for (int draw = 1; draw <= TMOEI_RESAMPLINGS; draw++) {
            const double x = tmoei_mean_gain(base, scores, count, relative, seed, draw);
            if (!tmoei_is_nan(x)) sample[n++] = x;
        }
        qsort(sample, (size_t)n, sizeof *sample, tmoei_double_order);
        gain[0] = tmoei_mean_gain(base, scores, count, relative, seed, 0);
        gain[1] = n ? sample[n * 25 / 1000] : (double)NAN;
        gain[2] = n ? sample[n * 975 / 1000] : (double)NAN;
    }
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_evaluate(tmoe_model *model, const tmoe_task *task, const float *route,
    int limit, double *score)
{
    tmoe_ctx *ctx = model->ctx;
    tmoei_owner own = { ctx, NULL };
    tmoei_begin(ctx);
    if (!task) return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "evaluate: the task is NULL");
    const int n = limit > 0 && limit < task->test_count ? limit : task->test_count;
    if (n < 1 || limit < 0)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "evaluate: task %s has %d test lines, limit is %d; at least 1 and 0", task->name,
            task->test_count, limit);
    const tmoei_question question = { task->name, task->instruction, route };
    const char **inputs = TMOEI_OWN(&own, const char *, n);
    char **answers = TMOEI_OWN(&own, char *, n);
    if (inputs && answers) {
        for (int i = 0; i < n; i++) inputs[i] = task->test[i].input;
        if (tmoei_answer_each(model, &question, inputs, n, answers) == TMOE_OK)
            (void)tmoe_score(ctx, task->metric, (const char *const *)answers, task->test, n, score);
        tmoe_answers_free(model, answers, n);
    }
    tmoei_owner_free(&own);
    return ctx->error;
}

/* ==== >>routes: reading them ================================================================== */

TMOE_DEF tmoe_result tmoe_route_correlations(tmoe_ctx *ctx, const tmoe_correlation_test *test,
    double *correlations, double *chances)
{
    const int tasks = test->tasks, columns = test->columns;
    tmoei_owner own = { ctx, NULL };
    tmoei_begin(ctx);
    if (tasks < 0 || columns < 0 || test->permutations < 0)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "route_correlations: %d tasks, %d columns, %d permutations; none may be negative",
            tasks, columns, test->permutations);
    int *order = TMOEI_OWN(&own, int, tasks);
    double *x = TMOEI_OWN(&own, double, tasks), *y = TMOEI_OWN(&own, double, tasks);
    for (int i = 0; i <= test->permutations && !ctx->error; i++) { /* 0: as given */
        double largest = 0.0;
        (void)tmoei_draw(test->seed, TMOEI_STREAM_PERMUTATION | (uint64_t)i, 0, order, tasks,
            i ? tasks : 0);
        for (int t = 0; t < tasks; t++) y[t] = (double)test->feature[order[t]];
        for (int c = 0; c < columns; c++) {
            for (int t = 0; t < tasks; t++)
                x[t] = (double)test->routes[(size_t)t * (size_t)columns + (size_t)c];
            const double r = tmoei_pearson(x, y, tasks);
            if (fabs(r) > largest) largest = fabs(r); /* not NaN */
            if (i == 0) {
                correlations[c] = r;
                chances[c] = tmoei_is_nan(r) ? r : 1.0;
            }
        }
        if (i > 0)
            for (int c = 0; c < columns; c++)
                chances[c] += largest >= fabs(correlations[c]) - 1e-12; /* equal but rounding */
    }
    if (!ctx->error)
        for (int c = 0; c < columns; c++) chances[c] /= test->permutations + 1.0;
    tmoei_owner_free(&own);
    return ctx->error;
}

/* Places *a < *b of the two nearest clusters; the name of one that was joined to another is -1. */
static void tmoei_nearest_clusters(const double *distance, const int *name, size_t n, size_t *a,
    size_t *b)
{
    *a = *b = n;
    for (size_t i = 0; i < n; i++)
        for (size_t j = i + 1; j < n; j++) {
            if (name[i] < 0 || name[j] < 0) continue;
            if (*a < n && !(distance[i * n + j] < distance[*a * n + *b])) continue;
            *a = i;
            *b = j;
        }
}

TMOE_DEF tmoe_result tmoe_cluster(tmoe_ctx *ctx, const float *x, int rows, int cols,
    tmoe_join *joins)
{
    tmoei_owner own = { ctx, NULL };
    tmoei_begin(ctx);
    if (rows < 0 || cols < 0)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "cluster: %d rows of %d columns", rows, cols);
    const size_t n = (size_t)rows;
    double *distance = (double *)tmoei_own(&own, n, n * sizeof(double));
    int *name = TMOEI_OWN(&own, int, n); /* row, or rows + earlier join */
    int *size = TMOEI_OWN(&own, int, n);
    for (size_t i = 0; i < n && !ctx->error; i++) {
        name[i] = (int)i;
        size[i] = 1;
        for (size_t j = 0; j < n; j++) {
            const float *a = x + i * (size_t)cols, *b = x + j * (size_t)cols;
            double squares = 0.0;
            for (int c = 0; c < cols; c++) squares += pow((double)(a[c] - b[c]), 2.0);
            distance[i * n + j] = sqrt(squares);
        }
    }
    for (int join = 0; join < rows - 1 && !ctx->error; join++) {
        size_t a, b;
        tmoei_nearest_clusters(distance, name, n, &a, &b);
        const double wa = (double)size[a], wb = (double)size[b];
        size[a] += size[b];
        joins[join].a = name[a];
        joins[join].b = name[b];
        joins[join].size = size[a];
        joins[join].height = distance[a * n + b];
        name[a] = rows + join;
        name[b] = -1;
        /* average linkage: d(a u b, i) = (|a| d(a, i) + |b| d(b, i)) / (|a| + |b|) */
        for (size_t i = 0; i < n; i++) {
            const double d = (wa * distance[a * n + i] + wb * distance[b * n + i]) / (wa + wb);
            distance[a * n + i] = distance[i * n + a] = d;
        }
    }
    tmoei_owner_free(&own);
    return ctx->error;
}

/* ==== >>fewshot: few-shot adaptation, and task vectors that a model makes ===================== */

TMOE_DEF tmoe_few_shot tmoe_few_shot_default(void)
{
    static const float rates[3] = { 3e-4f, 1e-3f, 2e-3f };
    tmoe_few_shot f;
    memset(&f, 0, sizeof f);
    f.start = TMOE_ZERO_SHOT_ROUTER;
    f.tune = TMOE_TUNE_ALL;
    f.optimiser = TMOE_OPTIMISER_ADAMW;
    f.shots_per_label = 16;
    f.shots = 32; /* CrossFit's */
    f.steps = 200;
    f.evaluate_every_steps = 50;
    f.warmup = 0.1f;
    f.seed = 100;
    f.learning_rate_count = f.batch_size_count = 3;
    for (int i = 0; i < 3; i++) {
        f.learning_rates[i] = rates[i];
        f.batch_sizes[i] = 2 << i;
    }
    return f;
}

/* Of one pair of learning rate and batch size. */
typedef struct tmoei_few_shot_outcome {
    double dev; /* best score on dev while it trained; NaN: never defined */
    tmoe_result result;
    char message[1024];
} tmoei_few_shot_outcome;

typedef struct tmoei_few_shot_job {
    const tmoe_model *model;
    const tmoe_task *task;
    const tmoe_few_shot *how;
    float *route;
    float *vector;       /* of the instruction */
    tmoe_example *lines; /* of training, then of dev */
    int train_count, dev_count;
    int wanted; /* the pair whose test score is measured; -1: all are trained, none is tested */
    double test;
    tmoei_few_shot_outcome outcomes[TMOE_FEW_SHOT_CHOICES * TMOE_FEW_SHOT_CHOICES];
} tmoei_few_shot_job;

/* Shrinks what is updated to the layers, or their FFNs, that were experts in `from`. In a dense
 * model all layers stay. */
static void tmoei_train_experts_only(tmoe_trainer *trainer, const tmoe_model *from)
{
    int kept = 0;
    if (from->R == 0) return;
    for (int i = 0; i < trainer->update_count; i++)
        for (int l = 0; l < from->L; l++) {
            const tmoei_layer *layer = &trainer->model->layers[l];
            if (from->layers[l].experts > 1
                && trainer->updates[i].offset - layer->block < layer->block_size)
                trainer->updates[kept++] = trainer->updates[i];
        }
    if (kept) trainer->update_count = kept;
}

/* How pair i trains: learning rate i / batch sizes, batch size i % batch sizes. */
static tmoe_training tmoei_few_shot_training(const tmoe_few_shot *f, int i)
{
    tmoe_training t = tmoe_training_default();
    t.steps = f->steps;
    t.warmup = f->warmup;
    t.seed = f->seed;
    t.tasks_per_step = 1;
    t.examples_per_task = f->batch_sizes[i % f->batch_size_count];
    t.lr_model = f->learning_rates[i / f->batch_size_count];
    t.lr_tasks = 10.0f * t.lr_model;
    t.optimiser = f->optimiser;
    t.lr_matrices *= t.lr_model / tmoe_training_default().lr_model; /* both in proportion */
    t.train = TMOE_TRAIN_LAYERS;
    if (f->tune == TMOE_TUNE_ALL) t.train = TMOE_TRAIN_MODEL;
    if (f->tune == TMOE_TUNE_VECTOR) t.train = TMOE_TRAIN_TASKS;
    return t;
}

/* What is tuned: the dense model that the route merges to, or the mixture with a trained vector
 * that begins as its instruction's, at the router's last temperature. */
static tmoe_model *tmoei_few_shot_model(const tmoei_few_shot_job *job, tmoe_ctx *ctx,
    const tmoe_task *task)
{
    const int vector = job->how->tune == TMOE_TUNE_VECTOR;
    tmoe_config c = job->model->config;
    if (vector)
        c.vectors = TMOE_VECTOR_LEARNED;
    else
        c.experts = 1;
    tmoe_model *model = tmoe_model_derive(ctx, job->model, vector ? NULL : job->route, &c, task, 1);
    if (!model) return NULL;
    if (model->has_vectors && tmoe_model_find_task(job->model, task->name) < 0)
        memcpy(model->theta + model->vectors, job->vector, (size_t)c.vector_width * sizeof(float));
    if (vector) model->step = job->model->step;
    return model;
}

/* Trains, measures dev from time to time and leaves the model with the best parameters and their
 * step. */
static void tmoei_few_shot_train(tmoe_trainer *trainer, const tmoe_task *task, int every,
    double *dev)
{
    tmoe_model *model = trainer->model;
    const size_t bytes = model->size * sizeof(float);
    const int steps = trainer->training.steps;
    int64_t best_step = model->step;
    double score;
    float *best = TMOEI_OWN(&model->own, float, model->size);
    if (!best) return;
    for (int step = 1; step <= steps; step++) {
        if (tmoe_trainer_step(trainer, NULL) != TMOE_OK) return;
        if (step % every != 0 && step != steps) continue;
        if (tmoe_evaluate(model, task, NULL, 0, &score) != TMOE_OK) return;
        if (score <= *dev || (tmoei_is_nan(score) && !tmoei_is_nan(*dev))) continue;
        *dev = score;
        best_step = model->step;
        memcpy(best, model->theta, bytes);
    }
    memcpy(model->theta, best, bytes);
    model->step = best_step;
    model->version++;
}

/* One pair, on a context of its own with one thread, since several run at once. */
static void tmoei_few_shot_chunk(void *arg, int chunk, int lane)
{
    tmoei_few_shot_job *job = (tmoei_few_shot_job *)arg;
    const int index = job->wanted < 0 ? chunk : job->wanted;
    const tmoe_training training = tmoei_few_shot_training(job->how, index);
    tmoei_few_shot_outcome *outcome = &job->outcomes[index];
    tmoe_ctx_config config = job->model->ctx->config;
    tmoe_task task = *job->task;
    tmoe_suite suite;
    (void)lane;
    config.threads = 1;
    config.parallel_fn = NULL;
    outcome->dev = (double)NAN;
    outcome->result = TMOE_ERR_MEMORY;
    (void)snprintf(outcome->message, sizeof outcome->message, "no memory for a context");
    tmoe_ctx *ctx = tmoe_ctx_create(&config);
    if (!ctx) return;

    task.part = TMOE_PART_TRAIN;
    task.train = job->lines;
    task.train_count = job->train_count;
    task.test = job->lines + job->train_count; /* dev */
    task.test_count = job->dev_count;
    memset(&suite, 0, sizeof suite);
    suite.ctx = ctx;
    suite.tasks = &task;
    suite.count = 1;
    tmoe_model *model = tmoei_few_shot_model(job, ctx, &task);
    tmoe_trainer *trainer = model ? tmoe_trainer_create(model, &suite, &training) : NULL;
    if (trainer) {
        if (job->how->tune == TMOE_TUNE_EXPERTS) tmoei_train_experts_only(trainer, job->model);
        tmoei_few_shot_train(trainer, &task, job->how->evaluate_every_steps, &outcome->dev);
    }
    if (!ctx->error && job->wanted >= 0) (void)tmoe_evaluate(model, job->task, NULL, 0, &job->test);
    outcome->result = ctx->error;
    (void)snprintf(outcome->message, sizeof outcome->message, "%.1000s", ctx->message);
    tmoe_trainer_destroy(trainer);
    tmoe_model_destroy(model);
    tmoe_ctx_destroy(ctx);
}

/* Samples training lines, balanced over the labels of a closed set. Of each label (or of all) every
 * other line is for training, the rest for dev. */
static void tmoei_few_shot_sample(tmoei_few_shot_job *job, int *order, tmoe_example *dev)
{
    const tmoe_task *task = job->task;
    const int n = task->train_count, labels = task->label_count;
    const int wanted = 2 * (labels ? job->how->shots_per_label : job->how->shots);
    (void)tmoei_draw(job->how->seed, TMOEI_STREAM_FEW_SHOT, 0, order, n, n);
    for (int label = 0; label < (labels ? labels : 1); label++) {
        int taken = 0;
        for (int i = 0; i < n && taken < wanted; i++) {
            const tmoe_example *line = &task->train[order[i]];
            if (labels && strcmp(line->outputs[0], task->labels[label]) != 0) continue;
            if (taken % 2 == 0)
                job->lines[job->train_count++] = *line;
            else
                dev[job->dev_count++] = *line;
            taken++;
        }
    }
    memcpy(job->lines + job->train_count, dev, (size_t)job->dev_count * sizeof *dev);
}

static tmoe_result tmoei_few_shot_check(const tmoe_model *model, const tmoe_task *task,
    const tmoe_few_shot *f)
{
    const int most = TMOE_FEW_SHOT_CHOICES;
    const int rates = f->learning_rate_count, sizes = f->batch_size_count;
    char text[1024] = "";
    const size_t size = sizeof text;
    if ((unsigned)f->start > TMOE_ZERO_SHOT_AVERAGE || (unsigned)f->tune > TMOE_TUNE_VECTOR
        || (unsigned)f->optimiser > TMOE_OPTIMISER_MUON)
        tmoei_problem(text, size, "start %d, tune %d or optimiser %d is unknown", (int)f->start,
            (int)f->tune, (int)f->optimiser);
    if (rates < 1 || rates > most || sizes < 1 || sizes > most)
        tmoei_problem(text, size, "%d learning rates, %d batch sizes: must be 1 to %d", rates,
            sizes, most);
    for (int i = 0; i < sizes && i < most; i++)
        if (f->batch_sizes[i] < 1 || f->batch_sizes[i] > TMOEI_EXAMPLES_MAX)
            tmoei_problem(text, size, "batch size %d: must be 1 to %d", f->batch_sizes[i],
                TMOEI_EXAMPLES_MAX);
    if (f->steps < 1 || f->evaluate_every_steps < 1 || f->shots < 1 || f->shots_per_label < 1
        || task->test_count < 1)
        tmoei_problem(text, size,
            "steps %d, evaluation every %d, shots %d and %d, test lines %d: must be at least 1",
            f->steps, f->evaluate_every_steps, f->shots, f->shots_per_label, task->test_count);
    const int routed = model->R > 0 && tmoei_selection_has_router(model->config.selection);
    const int read = routed || (model->config.task_input & TMOE_TASK_VECTOR); /* is the vector */
    if (f->tune == TMOE_TUNE_VECTOR && !read)
        tmoei_problem(text, size, "nothing in the model reads a task's vector");
    if (!text[0]) return TMOE_OK;
    return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT, "few_shot_run: %s", text);
}

/* Returns the pair that is best on dev. Those that diverged (TMOE_ERR_NUMERIC) are counted. The
 * call fails with any other error, or if all diverged. */
static int tmoei_few_shot_best(const tmoei_few_shot_job *job, int count, int *diverged)
{
    const tmoei_few_shot_outcome *all = job->outcomes;
    int best = -1, failed = -1;
    *diverged = 0;
    for (int i = 0; i < count; i++) {
        if (all[i].result == TMOE_ERR_NUMERIC)
            ++*diverged;
        else if (all[i].result != TMOE_OK)
            failed = i;
        else if (best < 0 || all[i].dev > all[best].dev || tmoei_is_nan(all[best].dev))
            best = i;
    }
    if (failed < 0 && best < 0) failed = 0;
    if (failed >= 0)
        tmoei_fail(job->model->ctx, all[failed].result, "few_shot_run: %.900s",
            all[failed].message);
    return best;
}

TMOE_DEF tmoe_result tmoe_few_shot_run(tmoe_model *model, const tmoe_task *task,
    const tmoe_few_shot *how, tmoe_few_shot_result *result)
{
    tmoe_ctx *ctx = model->ctx;
    const tmoe_few_shot f = how ? *how : tmoe_few_shot_default();
    const int pairs = f.learning_rate_count * f.batch_size_count;
    int best = -1, diverged;
    tmoei_owner own = { ctx, NULL };
    tmoei_begin(ctx);
    if (!task) return tmoei_fail(ctx, TMOE_ERR_ARGUMENT, "few_shot_run: the task is NULL");
    TMOEI_TRY(tmoei_few_shot_check(model, task, &f));
    const int lines = task->train_count;
    tmoei_few_shot_job *job = TMOEI_OWN(&own, tmoei_few_shot_job, 1);
    int *order = TMOEI_OWN(&own, int, lines);
    tmoe_example *dev = TMOEI_OWN(&own, tmoe_example, lines);
    if (job) {
        job->model = model;
        job->task = task;
        job->how = &f;
        job->wanted = -1;
        job->lines = TMOEI_OWN(&own, tmoe_example, lines);
        job->route = TMOEI_OWN(&own, float, model->route_width);
        job->vector = TMOEI_OWN(&own, float, model->config.vector_width);
    }
    if (!ctx->error) {
        tmoei_few_shot_sample(job, order, dev);
        if (job->train_count < 1 || job->dev_count < 1)
            TMOEI_BAD_DATA(ctx, "few_shot_run: task %s has too few training lines", task->name);
        else if (tmoe_vector_unseen(model, task->instruction, job->vector) == TMOE_OK)
            (void)tmoe_route_unseen(model, task->instruction, f.start, job->route);
    }

    /* The best pair is trained twice, with the same bits, the second time for its test score: so
     * there is one model a lane in memory. */
    if (!ctx->error) {
        tmoei_parallel(ctx, tmoei_few_shot_chunk, job, pairs);
        best = job->wanted = tmoei_few_shot_best(job, pairs, &diverged);
    }
    if (!ctx->error) {
        tmoei_parallel(ctx, tmoei_few_shot_chunk, job, 1);
        (void)tmoei_few_shot_best(job, pairs, &diverged);
    }
    if (!ctx->error) {
        result->dev = job->outcomes[best].dev;
        result->test = job->test;
        result->learning_rate = f.learning_rates[best / f.batch_size_count];
        result->batch_size = f.batch_sizes[best % f.batch_size_count];
        result->diverged = diverged;
        result->train_count = job->train_count;
        result->dev_count = job->dev_count;
    }
    tmoei_owner_free(&own);
    return ctx->error;
}

/* ---- task vectors that a model makes ---- */

/* Adds to row, for every p in norms and biases, (dl/dp)^2, l the loss of the line that the pass has
 * encoded to h. pass->grads is a twin of theta, zero before and after. */
static void tmoei_embed_fisher(tmoei_pass *pass, const tmoei_batch *b, tmoe_tensor *h, double *row)
{
    const tmoe_model *model = pass->model;
    h = tmoei_head(pass, tmoei_decode(pass, &b->target, h, &b->source));
    (void)tmoe_backward(pass->tape, tmoe_cross_entropy(pass->tape, h, b->labels, 0.0f, 1.0f));
    for (int i = 0; i < model->parameter_count; i++) {
        const tmoei_parameter *p = &model->parameters[i];
        const float *g = pass->grads + p->offset;
        if (p->rows > 1) continue; /* norms and biases are rows */
        for (int j = 0; j < p->cols; j++) row[j] += (double)g[j] * (double)g[j];
        row += p->cols;
    }
    memset(pass->grads, 0, model->size * sizeof(float));
}

/* Adds to row the Fisher information of a line (input and answer, tokenised) or, without grads, the
 * mean of the encoder's output over the tokens of the input. */
static tmoe_result tmoei_embed_line(tmoe_model *model, const tmoei_guide *guide,
    const tmoei_texts *line, float *grads, double *row)
{
    const size_t n = tmoei_target_length(model, line, 1);
    tmoe_tensor *h = NULL;
    tmoei_batch b;
    tmoei_pass pass;
    memset(&b, 0, sizeof b);
    TMOEI_TRY(tmoei_batch_reserve(model->ctx, &b, line->ids_used, line->ids_used, 1));
    tmoei_batch_put(&b, line->ids, line->offsets[1], line->ids + line->ids_used - n, n,
        model->config.start_id);
    if (tmoei_evaluation_pass(model, guide, model->tape, &pass) == TMOE_OK) {
        tmoe_tape_record(model->tape, grads != NULL);
        pass.grads = grads;
        pass.train = TMOE_TRAIN_MODEL;
        h = tmoei_encode(&pass, &b.source);
    }
    if (h && grads) tmoei_embed_fisher(&pass, &b, h, row);
    if (h && !grads)
        for (int t = 0; t < h->rows; t++)
            for (int d = 0; d < h->cols; d++)
                row[d] += (double)h->x[(size_t)t * (size_t)h->cols + (size_t)d] / (double)h->rows;
    tmoei_free(model->ctx, b.memory);
    return model->ctx->error;
}

/* Rotates n pairs of numbers that lie `stride` apart: (x, y) <- (c x - s y, s x + c y). */
static void tmoei_rotate(double *x, double *y, size_t n, size_t stride, double c, double s)
{
    for (size_t j = 0; j < n * stride; j += stride) {
        const double old = x[j];
        x[j] = c * old - s * y[j];
        y[j] = s * old + c * y[j];
    }
}

/* Eigenvalues of the symmetric G (n, n), on its diagonal afterwards, and eigenvectors, the columns
 * of U, by Jacobi's rotations, cyclically: G <- J^T G J, U <- U J, where J rotates p and q by the
 * angle whose tangent t makes G_pq = 0:  theta = (G_qq - G_pp) / (2 G_pq),
 * t = sign(theta) / (|theta| + sqrt(theta^2 + 1)). */
static void tmoei_eigen(double *G, double *U, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) U[i * n + j] = i == j ? 1.0 : 0.0;
    for (int sweep = 0; sweep < 30; sweep++) /* converges quadratically: 8 are usual */
        for (size_t p = 0; p < n; p++)
            for (size_t q = p + 1; q < n; q++) {
                const double pp = G[p * n + p], qq = G[q * n + q], pq = G[p * n + q];
                if (fabs(pq) <= 1e-15 * sqrt(fabs(pp * qq))) continue;
                const double theta = (qq - pp) / (2.0 * pq);
                const double sign = theta < 0.0 ? -1.0 : 1.0;
                const double t = sign / (fabs(theta) + sqrt(theta * theta + 1.0));
                const double c = 1.0 / sqrt(t * t + 1.0), s = t * c;
                tmoei_rotate(G + p, G + q, n, n, c, s);         /* columns */
                tmoei_rotate(G + p * n, G + q * n, n, 1, c, s); /* rows */
                tmoei_rotate(U + p, U + q, n, n, c, s);         /* columns */
            }
}

/* The first k principal components of the N rows of x (N, F), which is centred in place, into
 * out (N, k): with G = x x^T = U diag(l) U^T they are the columns of U times sqrt(l), the largest l
 * first. G and U (N, N) are scratch. */
static void tmoei_components(double *x, int N, size_t F, int k, double *G, double *U, float *out)
{
    const size_t n = (size_t)N;
    for (size_t f = 0; f < F; f++) {
        double mean = 0.0;
        for (size_t i = 0; i < n; i++) mean += x[i * F + f] / (double)N;
        for (size_t i = 0; i < n; i++) x[i * F + f] -= mean;
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            double dot = 0.0;
            for (size_t f = 0; f < F; f++) dot += x[i * F + f] * x[j * F + f];
            G[i * n + j] = dot;
        }
    tmoei_eigen(G, U, n);

    for (int j = 0; j < k; j++) {
        size_t best = 0;
        for (size_t i = 1; i < n; i++)
            if (G[i * n + i] > G[best * n + best]) best = i;
        const double l = G[best * n + best];
        for (size_t i = 0; i < n; i++)
            out[i * (size_t)k + (size_t)j] = l > 0.0 ? (float)(U[i * n + best] * sqrt(l)) : 0.0f;
        G[best * n + best] = -1.0; /* taken */
    }
}

/* The row (F) of one task: the sum over its lines, scaled to length 1. */
static void tmoei_embed_task(tmoe_model *model, const tmoe_task *task, int lines, float *grads,
    double *row, size_t F)
{
    double squares = 0.0;
    tmoei_asked asked;
    tmoei_texts line;
    memset(&line, 0, sizeof line);
    const tmoei_question question = { task->name, task->instruction, NULL };
    (void)tmoei_ask(model, &question, &asked);
    for (int i = 0; i < lines && i < task->train_count && !model->ctx->error; i++) {
        line.count = line.ids_used = 0;
        if (tmoei_example_add(model, &line, task, i, 1) == TMOE_OK)
            (void)tmoei_embed_line(model, &asked.guide, &line, grads, row);
    }
    tmoei_owner_free(&asked.own);
    tmoei_texts_free(model->ctx, &line);
    for (size_t f = 0; f < F; f++) squares += row[f] * row[f];
    if (squares > 0.0)
        for (size_t f = 0; f < F; f++) row[f] /= sqrt(squares);
}

TMOE_DEF tmoe_result tmoe_task_vectors(tmoe_model *model, const tmoe_suite *suite,
    tmoe_task_embedding how, int lines, int vector_width, float *vectors)
{
    tmoe_ctx *ctx = model->ctx;
    const size_t N = (size_t)suite->count;
    const int fisher = how == TMOE_EMBED_FISHER;
    tmoei_owner own = { ctx, NULL };
    tmoei_begin(ctx);
    if (model->R > 0 || !model->tokenizer || (unsigned)how > TMOE_EMBED_FISHER || lines < 1
        || vector_width < 1 || N < 1 || (!fisher && vector_width != model->config.width))
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "task_vectors: kind %d, %d lines, width %d, %d tasks; at least 1, a dense model with a "
            "tokenizer, and for states its width, %d",
            (int)how, lines, vector_width, suite->count, model->config.width);

    size_t F = fisher ? 0 : (size_t)model->config.width; /* features of a task */
    for (int p = 0; p < model->parameter_count; p++)
        if (fisher && model->parameters[p].rows == 1) F += model->parameters[p].size;
    double *x = TMOEI_OWN(&own, double, F *N);
    double *G = fisher ? TMOEI_OWN(&own, double, 2 * N * N) : NULL;
    float *grads = fisher ? TMOEI_OWN(&own, float, model->size) : NULL;
    for (size_t t = 0; t < N && !ctx->error; t++)
        tmoei_embed_task(model, &suite->tasks[t], lines, grads, x + t * F, F);
    if (!ctx->error) {
        const size_t n = N * (size_t)vector_width;
        double squares = 0.0;
        if (fisher)
            tmoei_components(x, suite->count, F, vector_width, G, G + N * N, vectors);
        else
            for (size_t i = 0; i < n; i++) vectors[i] = (float)x[i];
        /* to a mean length of sqrt(width), that of random normal numbers */
        for (size_t i = 0; i < n; i++) squares += (double)vectors[i] * (double)vectors[i];
        const float scale = squares > 0.0 ? (float)sqrt((double)n / squares) : 0.0f;
        for (size_t i = 0; i < n; i++) vectors[i] *= scale;
    }
    tmoei_owner_free(&own);
    return ctx->error;
}

#endif /* TMOE_NO_EVALUATION */

/* ==== >>files: models and checkpoints ============================================================
 * A safetensors file. Its metadata holds the parts of a model as JSON; every parameter is a tensor
 * of its own name. A trainer adds its settings, its state, and twins of what is trained of theta:
 * "trainer.moment1", "trainer.moment2" (without the matrices that Muon moves) and, once validation
 * was measured, "trainer.best". */

#ifndef TMOE_NO_STDIO /* up to the end of >>bart */

#define TMOEI_FORMAT "4"
#define TMOEI_FORMAT_3 "3"   /* has fewer fields of the config */
#define TMOEI_FORMAT_0_1 "2" /* of version 0.1: as 3, and some fields have other names */

/* Writes "name":value, ... and `end`. An integer below 0 is an id that is absent, and left out. */
static void tmoei_fields_to_json(tmoe_ctx *ctx, const void *base, const tmoei_field *fields,
    size_t count, tmoei_buffer *text, const char *end)
{
    for (const tmoei_field *f = fields; f < fields + count; f++) {
        const double x = tmoei_field_value(base, f);
        if (x < 0.0 && f->kind == TMOEI_KIND_INT) continue;
        tmoei_buffer_print(ctx, text, "%s\"%s\":", f > fields ? "," : "", f->name);
        if (f->kind == TMOEI_KIND_BOOL)
            tmoei_buffer_print(ctx, text, x != 0.0 ? "true" : "false");
        else
            tmoei_buffer_json_number(ctx, text, x);
    }
    tmoei_buffer_add(ctx, text, end, strlen(end));
}

/* The value of a field by its name or, if there is none, by that of version 0.1. */
static const tmoei_json_node *tmoei_field_find(const tmoei_json *json, const char *name)
{
    static const char *const names[9][2] = { { "width", "D" }, { "encoder_heads", "H_encoder" },
        { "decoder_heads", "H_decoder" }, { "encoder_ffn", "F_encoder" },
        { "decoder_ffn", "F_decoder" }, { "vocabulary", "V" }, { "experts", "E" },
        { "vector_width", "k" }, { "task_input", "instruction_in_input" } };
    int node = tmoei_json_get(json, 0, name);
    for (int i = 0; i < 9 && node < 0; i++)
        if (strcmp(names[i][0], name) == 0) node = tmoei_json_get(json, 0, names[i][1]);
    return tmoei_json_at(json, node);
}

/* Reads the fields that an object has. An unsound one is an error; so is a missing one, if
 * required. A list of one counts as what is in it: some BARTs have their end token so. */
static tmoe_result tmoei_fields_from_json(tmoe_ctx *ctx, const tmoei_json *json, const char *path,
    void *base, const tmoei_field *fields, size_t count, int required)
{
    for (const tmoei_field *f = fields; f < fields + count; f++) {
        const tmoei_json_node *node = tmoei_field_find(json, f->name);
        if (node->kind == TMOEI_JSON_ARRAY && node->count == 1)
            node = tmoei_json_at(json, node->child);
        if (node->kind == TMOEI_JSON_NULL && !required) continue;

        const double x = node->kind == TMOEI_JSON_TRUE ? 1.0 : node->number;
        const int known = node->kind == TMOEI_JSON_NUMBER || node->kind == TMOEI_JSON_TRUE
            || node->kind == TMOEI_JSON_FALSE;
        if (!known || !tmoei_field_set(base, f, x))
            return TMOEI_BAD_FORMAT(ctx, "%s: there is no sound '%s'", path, f->name);
    }
    return TMOE_OK;
}

/* ---- the parts of a model ---- */

static void tmoei_write_config(const tmoe_model *model, tmoei_buffer *text)
{
    const tmoe_config *c = &model->config;
    tmoei_buffer_print(model->ctx, text, "{\"seed\":\"%llu\",", (unsigned long long)c->seed);
    tmoei_fields_to_json(model->ctx, c, tmoei_config_fields, TMOEI_CONFIG_FIELDS, text, "}");
}

static void tmoei_write_tokenizer(const tmoe_model *model, tmoei_buffer *text)
{
    tmoei_tokenizer_to_json(model->ctx, model->tokenizer, text);
}

/* A list of strings, three a task: name, category, instruction. */
static void tmoei_write_tasks(const tmoe_model *model, tmoei_buffer *text)
{
    tmoei_buffer_add(model->ctx, text, "[", 1);
    for (int t = 0; t < model->N; t++) {
        const tmoe_task *task = &model->tasks[t];
        const char *const texts[] = { task->name, task->category, task->instruction };
        for (int i = 0; i < 3; i++) {
            if (t + i > 0) tmoei_buffer_add(model->ctx, text, ",", 1);
            tmoei_buffer_json_string(model->ctx, text, texts[i], strlen(texts[i]));
        }
    }
    tmoei_buffer_add(model->ctx, text, "]", 1);
}

static void tmoei_write_generation(const tmoe_model *model, tmoei_buffer *text)
{
    tmoei_buffer_add(model->ctx, text, "{", 1);
    tmoei_fields_to_json(model->ctx, &model->generation, tmoei_generation_fields,
        TMOEI_GENERATION_FIELDS, text, "}");
}

static void tmoei_write_step(const tmoe_model *model, tmoei_buffer *text)
{
    tmoei_buffer_print(model->ctx, text, "%lld", (long long)model->step);
}

enum {
    TMOEI_PART_CONFIG,
    TMOEI_PART_TOKENIZER,
    TMOEI_PART_TASKS,
    TMOEI_PART_GENERATION,
    TMOEI_PART_STEP,
    TMOEI_PARTS
};

typedef struct tmoei_part_writer {
    const char *name; /* of a string in the metadata, or of a file of >>bart */
    void (*write)(const tmoe_model *model, tmoei_buffer *text);
} tmoei_part_writer;

static const tmoei_part_writer tmoei_parts[TMOEI_PARTS] = { { "config", tmoei_write_config },
    { "tokenizer", tmoei_write_tokenizer }, { "tasks", tmoei_write_tasks },
    { "generation", tmoei_write_generation }, { "step", tmoei_write_step } };

/* ---- writing ---- */

enum { TMOEI_MOMENT1, TMOEI_MOMENT2, TMOEI_BEST, TMOEI_TWINS };

static const char *const tmoei_twin_names[TMOEI_TWINS] = { "trainer.moment1", "trainer.moment2",
    "trainer.best" };

static size_t tmoei_twin_size(const tmoe_trainer *trainer, int twin)
{
    return twin == TMOEI_MOMENT2 ? trainer->span2 : trainer->span;
}

static void tmoei_hash_add(uint64_t *hash, size_t number)
{
    *hash = tmoei_mix64(*hash + number + 1);
}

/* Of a trainer's tasks, where the lines of each begin, and the tokens of all lines. */
static uint64_t tmoei_lines_hash(const tmoe_trainer *trainer)
{
    const tmoei_texts *texts = &trainer->texts;
    uint64_t hash = 0;
    for (int t = 0; t < trainer->task_count; t++) {
        tmoei_hash_add(&hash, (size_t)trainer->tasks[t].task);
        tmoei_hash_add(&hash, trainer->tasks[t].first);
    }
    for (size_t i = 0; i < trainer->example_count; i++)
        tmoei_hash_add(&hash, (size_t)trainer->examples[i].targets);
    for (size_t i = 0; i < texts->count; i++) tmoei_hash_add(&hash, tmoei_text_length(texts, i));
    for (size_t i = 0; i < texts->ids_used; i++) tmoei_hash_add(&hash, (size_t)texts->ids[i]);
    return hash;
}

/* The fields of tmoe_training that change the bits of a step. */
static const tmoei_field *const tmoei_settings = tmoei_training_fields + TMOEI_FREE_FIELDS;

enum { TMOEI_SETTINGS = TMOEI_TRAINING_FIELDS - TMOEI_FREE_FIELDS };

/* Numbers of 64 bits are strings: those of JSON hold 53. The fields that change no step are written
 * for tmoe_describe; tmoe_trainer_load compares the others. */
static void tmoei_write_settings(const tmoe_trainer *trainer, tmoei_buffer *text)
{
    tmoei_buffer_print(trainer->ctx, text, "{\"seed\":\"%llu\",\"hash of the lines\":\"%llu\",",
        (unsigned long long)trainer->training.seed, (unsigned long long)tmoei_lines_hash(trainer));
    tmoei_fields_to_json(trainer->ctx, &trainer->training, tmoei_training_fields,
        TMOEI_TRAINING_FIELDS, text, "}");
}

/* Refuses a generation that could not be read again. */
static tmoe_result tmoei_search_check(const tmoe_model *model, const char *path)
{
    char text[TMOEI_PROBLEM_BYTES] = "";
    tmoei_fields_check(&model->generation, tmoei_generation_fields, TMOEI_GENERATION_FIELDS, text,
        sizeof text);
    if (!text[0]) return TMOE_OK;
    return TMOEI_BAD_DATA(model->ctx, "%s: not written: %s", path, text);
}

/* One more string of the metadata; the buffer is empty afterwards. */
static void tmoei_save_text(tmoe_ctx *ctx, tmoei_writer *writer, const char *name,
    tmoei_buffer *text)
{
    if (text->failed) return;
    if (tmoei_utf8_sound(text->data, text->length) < text->length)
        TMOEI_BAD_DATA(ctx, "not written: a text of '%s' is not valid UTF-8", name);
    tmoei_writer_metadata(ctx, writer, name, text->data, text->length);
    text->length = 0;
}

/* trainer may be NULL. */
static tmoe_result tmoei_save(const tmoe_model *model, const tmoe_trainer *trainer,
    const char *path)
{
    tmoe_ctx *ctx = model->ctx;
    tmoei_buffer text = { NULL, 0, 0, 0 };
    tmoei_writer writer;
    tmoei_begin(ctx);
    TMOEI_TRY(tmoei_search_check(model, path));
    memset(&writer, 0, sizeof writer);
    tmoei_writer_metadata(ctx, &writer, "format", "taskmoe", 7);
    tmoei_writer_metadata(ctx, &writer, "version", TMOEI_FORMAT, 1);
    for (int i = 0; i < TMOEI_PARTS; i++) {
        tmoei_parts[i].write(model, &text);
        tmoei_save_text(ctx, &writer, tmoei_parts[i].name, &text);
    }
    if (trainer) {
        tmoei_write_settings(trainer, &text);
        tmoei_save_text(ctx, &writer, "training", &text);
        tmoei_buffer_print(ctx, &text, "%lld %d ", (long long)trainer->steps_done,
            trainer->bad_evaluations);
        tmoei_buffer_json_number(ctx, &text, (double)trainer->best_loss);
        tmoei_buffer_print(ctx, &text, " %lld", (long long)trainer->best_step);
        tmoei_save_text(ctx, &writer, "trainer", &text);
    }

    for (int i = 0; i < model->parameter_count; i++) {
        const tmoei_parameter *p = &model->parameters[i];
        tmoei_writer_tensor(ctx, &writer, p->name, p->rows > 1 ? 2 : 1, 0, (size_t)p->rows,
            (size_t)p->cols, model->theta + p->offset);
    }
    if (trainer) {
        const int measured = trainer->best && trainer->best_loss == trainer->best_loss; /* no NaN */
        const float *const twins[TMOEI_TWINS] = { trainer->moment1, trainer->moment2,
            trainer->best };
        for (int i = 0; i < (measured ? TMOEI_TWINS : TMOEI_BEST); i++)
            tmoei_writer_tensor(ctx, &writer, tmoei_twin_names[i], 1, 0, 1,
                tmoei_twin_size(trainer, i), twins[i]);
    }
    (void)tmoei_writer_save(ctx, &writer, path);
    tmoei_writer_free(ctx, &writer);
    tmoei_buffer_free(ctx, &text);
    return ctx->error;
}

TMOE_DEF tmoe_result tmoe_model_save(const tmoe_model *model, const char *path)
{
    return tmoei_save(model, NULL, path);
}

TMOE_DEF tmoe_result tmoe_trainer_save(const tmoe_trainer *trainer, const char *path)
{
    return tmoei_save(trainer->model, trainer, path);
}

/* ---- reading a model ---- */

/* The tasks of a model, their texts in the JSON's memory; NULL with the error noted. */
static tmoe_task *tmoei_tasks_from_json(tmoe_ctx *ctx, const tmoei_json *json, const char *path,
    int *count)
{
    const tmoei_json_node *nodes = json->nodes;
    int node = nodes[0].child, sound = nodes[0].kind == TMOEI_JSON_ARRAY && nodes[0].count % 3 == 0;
    for (int i = node; i >= 0; i = nodes[i].next) sound = sound && tmoei_json_is_string(json, i);
    if (!sound)
        return TMOEI_FAIL_NULL(ctx, TMOE_ERR_FORMAT, "%s: the list of tasks is not sound", path);

    *count = nodes[0].count / 3;
    tmoe_task *tasks = (tmoe_task *)tmoei_alloc(ctx, (size_t)*count + 1, sizeof *tasks, 1);
    for (int t = 0; tasks && t < *count; t++) {
        const char **const texts[] = { &tasks[t].name, &tasks[t].category, &tasks[t].instruction };
        for (int i = 0; i < 3; i++) {
            *texts[i] = nodes[node].text;
            node = nodes[node].next;
        }
    }
    return tasks;
}

/* The model that the parts describe, still without its parameters. */
static tmoe_model *tmoei_model_from_json(tmoe_ctx *ctx, const tmoei_json *parts, int old,
    const char *path)
{
    const tmoei_json *config = &parts[TMOEI_PART_CONFIG], *words = &parts[TMOEI_PART_TOKENIZER];
    const tmoei_json_node *step = parts[TMOEI_PART_STEP].nodes;
    const int seed = tmoei_json_get(config, 0, "seed");
    tmoe_config c = tmoe_config_default();
    tmoe_tokenizer *tokenizer = NULL;
    tmoe_model *model = NULL;
    int count = 0;
    c.positions = TMOE_POSITION_LEARNED; /* of old files */
    c.word_pairs = 0;
    c.vector_length = 0.0f;
    (void)tmoei_fields_from_json(ctx, config, path, &c, tmoei_config_fields,
        old ? TMOEI_CONFIG_FIELDS_3 : TMOEI_CONFIG_FIELDS, 1);
    if (!tmoei_json_is_string(config, seed) || step->kind != TMOEI_JSON_NUMBER
        || !(step->number >= 0.0 && step->number < 9e15) || step->number != floor(step->number))
        TMOEI_BAD_FORMAT(ctx, "%s: there is no sound seed or step", path);
    if (ctx->error) return NULL;
    c.seed = strtoull(config->nodes[seed].text, NULL, 10);

    tmoe_task *tasks = tmoei_tasks_from_json(ctx, &parts[TMOEI_PART_TASKS], path, &count);
    if (tasks && words->nodes->count > 0) /* {}: it has none */
        tokenizer = tmoei_tokenizer_from_json(ctx, words);
    if (!ctx->error) model = tmoei_model_new(ctx, &c, tokenizer, tasks, count);
    tmoei_free(ctx, tasks);
    tmoe_tokenizer_destroy(tokenizer);
    if (!model) return NULL;
    model->step = (int64_t)step->number;
    (void)tmoei_fields_from_json(ctx, &parts[TMOEI_PART_GENERATION], path, &model->generation,
        tmoei_generation_fields, TMOEI_GENERATION_FIELDS, 0);
    return tmoei_model_if(!ctx->error, model);
}

/* Returns whether a file is older than the last fields of the config. */
static int tmoei_is_old(const tmoei_safetensors *file)
{
    const char *version = tmoei_safetensors_metadata(file, "version");
    return version && strcmp(version, TMOEI_FORMAT) != 0;
}

static tmoe_result tmoei_parts_parse(tmoe_ctx *ctx, const tmoei_safetensors *file,
    tmoei_json *parts)
{
    const char *path = file->path, *version = tmoei_safetensors_metadata(file, "version");
    if (version && strcmp(version, TMOEI_FORMAT) != 0 && strcmp(version, TMOEI_FORMAT_3) != 0
        && strcmp(version, TMOEI_FORMAT_0_1) != 0)
        return TMOEI_BAD_FORMAT(ctx, "%s: format version %.20s; this library reads 2 to 4", path,
            version);
    for (int i = 0; i < TMOEI_PARTS; i++) {
        const char *name = tmoei_parts[i].name, *text = tmoei_safetensors_metadata(file, name);
        if (!text)
            return TMOEI_BAD_FORMAT(ctx,
                "%s: not a model of this library: its metadata has no '%s'", path, name);
        TMOEI_TRY(tmoei_json_parse(ctx, &parts[i], text, strlen(text), path));
    }
    return TMOE_OK;
}

/* Makes the mapped file itself the parameters if every tensor lies where the model wants it; else
 * returns 0. */
static int tmoei_read_in_place(tmoe_model *model, tmoei_safetensors *file)
{
    if (!file->mapped || !tmoei_little_endian() || (uintptr_t)file->data % sizeof(float)) return 0;
    for (int i = 0; i < model->parameter_count; i++) {
        const tmoei_parameter *p = &model->parameters[i];
        const tmoei_entry *e = tmoei_safetensors_find(file, p->name);
        if (!e || e->dtype != TMOEI_F32 || e->begin != p->offset * sizeof(float)
            || e->count != p->size)
            return 0;
    }
    model->theta = (float *)(void *)(file->bytes + (file->size - file->data_size));
    model->mapping = file->bytes;
    model->mapping_size = file->size;
    file->mapped = 0; /* the model unmaps it */
    file->bytes = NULL;
    return 1;
}

static tmoe_result tmoei_parameters_read(tmoe_model *model, tmoei_safetensors *file)
{
    if (tmoei_read_in_place(model, file)) return TMOE_OK;
    TMOEI_TRY(tmoei_theta_alloc(model));
    for (int i = 0; i < model->parameter_count; i++) {
        const tmoei_parameter *p = &model->parameters[i];
        const tmoei_entry *e = tmoei_safetensors_find(file, p->name);
        if (!e)
            return TMOEI_BAD_FORMAT(model->ctx, "%s: there is no tensor %s", file->path, p->name);
        TMOEI_TRY(
            tmoei_safetensors_read(model->ctx, file, e, 0, model->theta + p->offset, p->size));
    }
    return TMOE_OK;
}

/* The model of an open file, without its parameters. */
static tmoe_model *tmoei_model_of_file(tmoe_ctx *ctx, const tmoei_safetensors *file)
{
    tmoei_json parts[TMOEI_PARTS];
    tmoe_model *model = NULL;
    memset(parts, 0, sizeof parts);
    if (tmoei_parts_parse(ctx, file, parts) == TMOE_OK)
        model = tmoei_model_from_json(ctx, parts, tmoei_is_old(file), file->path);
    for (int i = 0; i < TMOEI_PARTS; i++) tmoei_json_free(ctx, &parts[i]);
    return model;
}

TMOE_DEF tmoe_model *tmoe_model_load(tmoe_ctx *ctx, const char *path)
{
    tmoei_safetensors file;
    tmoei_begin(ctx);
    if (tmoei_safetensors_open(ctx, &file, path) != TMOE_OK) return NULL;
    tmoe_model *model = tmoei_model_of_file(ctx, &file);
    if (model) (void)tmoei_parameters_read(model, &file);
    tmoei_safetensors_close(ctx, &file);
    return tmoei_model_if(!ctx->error, model);
}

/* ---- reading a checkpoint ---- */

typedef struct tmoei_checkpoint {
    tmoei_safetensors file;
    tmoe_model *model; /* as the file has it */
    const tmoei_entry *twins[TMOEI_TWINS];
    long long steps_done, best_step;
    int bad_evaluations;
    double best_loss;
} tmoei_checkpoint;

/* "steps_done bad_evaluations best_loss best_step": the loss is nan before the first measurement;
 * older files lack the step. */
static tmoe_result tmoei_state_read(tmoe_ctx *ctx, tmoei_checkpoint *c)
{
    const char *state = tmoei_safetensors_metadata(&c->file, "trainer");
    char best[32];
    c->best_step = (long long)c->model->step;
    int sound = state
        && sscanf(state, "%lld %d %31s %lld", &c->steps_done, &c->bad_evaluations, best,
               &c->best_step)
            >= 3
        && c->steps_done >= 0 && c->best_step >= 0;
    for (int i = 0; i < TMOEI_TWINS; i++) {
        c->twins[i] = tmoei_safetensors_find(&c->file, tmoei_twin_names[i]);
        sound = sound && (c->twins[i] || i == TMOEI_BEST);
    }
    if (!sound) return TMOEI_BAD_FORMAT(ctx, "%s: not a trainer's checkpoint", c->file.path);
    if (!c->twins[TMOEI_BEST]) return TMOE_OK;
    tmoei_json number; /* strtod would want the comma of some locales */
    TMOEI_TRY(tmoei_json_parse(ctx, &number, best, strlen(best), c->file.path));
    c->best_loss = number.nodes->number;
    tmoei_json_free(ctx, &number);
    return TMOE_OK;
}

static void tmoei_digits_compare(const tmoei_json *json, const char *name, uint64_t here,
    char *text, size_t size)
{
    const tmoei_json_node *node = tmoei_json_value(json, 0, name);
    char digits[24];
    (void)snprintf(digits, sizeof digits, "%llu", (unsigned long long)here);
    if (!tmoei_json_says(node, digits))
        tmoei_problem(text, size, "%s is %.24s in the file, %s here", name,
            node->text ? node->text : "", digits);
}

/* Notes what a file's settings and lines change in the bits of a step. */
static tmoe_result tmoei_settings_compare(const tmoe_trainer *trainer, const char *settings,
    const char *path, char *text, size_t size)
{
    tmoe_ctx *ctx = trainer->ctx;
    tmoe_training theirs = trainer->training;
    tmoei_json json;
    const size_t first = TMOEI_SETTINGS - TMOEI_LATER_FIELDS;
    theirs.optimiser = TMOE_OPTIMISER_ADAMW; /* where it is not said */
    theirs.router_dropout = 0.0f;
    TMOEI_TRY(tmoei_json_parse(ctx, &json, settings, strlen(settings), path));
    (void)tmoei_fields_from_json(ctx, &json, path, &theirs, tmoei_settings, first, 1);
    (void)tmoei_fields_from_json(ctx, &json, path, &theirs, tmoei_settings + first,
        TMOEI_LATER_FIELDS, 0);
    for (size_t i = 0; i < TMOEI_SETTINGS; i++) {
        const tmoei_field *f = &tmoei_settings[i];
        const int of_muon = i > first && i <= first + TMOEI_MATRIX_FIELDS;
        if (of_muon && theirs.optimiser != TMOE_OPTIMISER_MUON) continue;
        const double there = tmoei_field_value(&theirs, f);
        const double here = tmoei_field_value(&trainer->training, f);
        if (there != here)
            tmoei_problem(text, size, "%s is %.9g in the file, %.9g here", f->name, there, here);
    }
    tmoei_digits_compare(&json, "seed", trainer->training.seed, text, size);
    tmoei_digits_compare(&json, "hash of the lines", tmoei_lines_hash(trainer), text, size);
    tmoei_json_free(ctx, &json);
    return ctx->error;
}

/* Refuses a checkpoint from which this trainer could not continue with equal bits. */
static tmoe_result tmoei_checkpoint_compare(const tmoe_trainer *trainer, const tmoei_checkpoint *c)
{
    tmoe_ctx *ctx = trainer->ctx;
    const char *path = c->file.path;
    char text[TMOEI_PROBLEM_BYTES] = "";
    for (int i = TMOEI_PART_CONFIG; i <= TMOEI_PART_TASKS; i++) {
        tmoei_buffer theirs = { NULL, 0, 0, 0 }, ours = { NULL, 0, 0, 0 };
        tmoei_parts[i].write(c->model, &theirs);
        tmoei_parts[i].write(trainer->model, &ours);
        if (!ctx->error && strcmp(theirs.data, ours.data) != 0)
            tmoei_problem(text, sizeof text, "the models differ in their %s", tmoei_parts[i].name);
        tmoei_buffer_free(ctx, &theirs);
        tmoei_buffer_free(ctx, &ours);
    }
    const char *settings = tmoei_safetensors_metadata(&c->file, "training");
    if (settings) /* version 0.1 stored none */
        TMOEI_TRY(tmoei_settings_compare(trainer, settings, path, text, sizeof text));
    if (c->steps_done > trainer->training.steps)
        tmoei_problem(text, sizeof text, "steps is %d, but %lld are done", trainer->training.steps,
            c->steps_done);
    for (int i = 0; i < TMOEI_TWINS; i++)
        if (c->twins[i]
            && (c->twins[i]->count != tmoei_twin_size(trainer, i)
                || c->twins[i]->dtype != TMOEI_F32))
            tmoei_problem(text, sizeof text, "%s is of another length", tmoei_twin_names[i]);
    if (!text[0]) return ctx->error;
    return tmoei_fail(ctx, TMOE_ERR_CONFIG, "%s: another training: %s", path, text);
}

/* Changes the trainer when nothing can fail any more. */
static void tmoei_checkpoint_take(tmoe_trainer *trainer, const tmoei_checkpoint *c)
{
    tmoe_model *model = trainer->model;
    float *const twins[TMOEI_TWINS] = { trainer->moment1, trainer->moment2, trainer->best };
    memcpy(model->theta, c->model->theta, model->size * sizeof(float));
    for (int i = 0; i < TMOEI_TWINS; i++)
        if (twins[i] && c->twins[i])
            (void)tmoei_safetensors_read(trainer->ctx, &c->file, c->twins[i], 0, twins[i],
                tmoei_twin_size(trainer, i));
    const int measured = trainer->best && c->twins[TMOEI_BEST];
    trainer->best_loss = measured ? (float)c->best_loss : (float)NAN;
    trainer->best_step = (int64_t)c->best_step;
    trainer->bad_evaluations = c->bad_evaluations;
    trainer->steps_done = trainer->first_step = (int64_t)c->steps_done;
    trainer->began = trainer->tokens = 0.0;
    model->step = c->model->step;
    model->version++;
}

/* The settings and the state of the training that a checkpoint holds. */
static tmoe_result tmoei_describe_training(tmoe_ctx *ctx, tmoei_checkpoint *c,
    tmoe_description *description)
{
    const char *settings = tmoei_safetensors_metadata(&c->file, "training"), *path = c->file.path;
    tmoe_training *t = &description->training;
    TMOEI_TRY(tmoei_state_read(ctx, c));
    description->is_checkpoint = 1;
    description->steps_done = (int64_t)c->steps_done;
    description->best_step = (int64_t)c->best_step;
    if (c->twins[TMOEI_BEST]) description->best_validation_loss = (float)c->best_loss;
    t->optimiser = TMOE_OPTIMISER_ADAMW; /* where it is not said */
    t->router_dropout = 0.0f;
    if (!settings) return TMOE_OK; /* version 0.1 stored none */

    tmoei_json json;
    TMOEI_TRY(tmoei_json_parse(ctx, &json, settings, strlen(settings), path));
    const tmoei_json_node *seed = tmoei_json_value(&json, 0, "seed");
    (void)tmoei_fields_from_json(ctx, &json, path, t, tmoei_training_fields, TMOEI_TRAINING_FIELDS,
        0);
    if (seed->text) t->seed = strtoull(seed->text, NULL, 10);
    tmoei_json_free(ctx, &json);
    return ctx->error;
}

TMOE_DEF tmoe_result tmoe_describe(tmoe_ctx *ctx, const char *path, tmoe_description *description)
{
    tmoe_description found;
    tmoei_checkpoint c;
    tmoei_begin(ctx);
    memset(&c, 0, sizeof c);
    memset(&found, 0, sizeof found);
    found.training = tmoe_training_default();
    found.best_validation_loss = (float)NAN;
    if (tmoei_safetensors_open(ctx, &c.file, path) != TMOE_OK) return ctx->error;

    c.model = tmoei_model_of_file(ctx, &c.file);
    if (c.model) {
        found.config = c.model->config;
        found.task_count = c.model->N;
        found.parameters = tmoe_model_parameters(c.model, &found.active_parameters);
        found.step = c.model->step;
        found.file_bytes = c.file.size;
        if (tmoei_safetensors_metadata(&c.file, "trainer"))
            (void)tmoei_describe_training(ctx, &c, &found);
    }
    tmoe_model_destroy(c.model);
    tmoei_safetensors_close(ctx, &c.file);
    if (ctx->error == TMOE_OK) *description = found;
    return ctx->error;
}

TMOE_DEF tmoe_result tmoe_trainer_load(tmoe_trainer *trainer, const char *path)
{
    tmoe_ctx *ctx = trainer->ctx;
    tmoei_checkpoint c;
    memset(&c, 0, sizeof c);
    c.model = tmoe_model_load(ctx, path);
    if (c.model && tmoei_safetensors_open(ctx, &c.file, path) == TMOE_OK
        && tmoei_state_read(ctx, &c) == TMOE_OK && tmoei_checkpoint_compare(trainer, &c) == TMOE_OK)
        tmoei_checkpoint_take(trainer, &c);
    tmoe_model_destroy(c.model);
    tmoei_safetensors_close(ctx, &c.file);
    return ctx->error;
}

/* ==== >>bart: Hugging Face's BART folders, read and written ======================================
 * config.json, model.safetensors (or several with an index), generation_config.json, a tokenizer.
 * BART is our model with norms behind the sublayers and one expert. Its q, k and v matrices are one
 * in ours, below each other, and its tables of positions begin with two rows that are not used. */

#ifndef TMOE_NO_BART

#define TMOEI_BART_SKIP 2 /* rows of a table of positions before position 0 */

typedef struct tmoei_bart_tensor { /* a tensor of theirs, and where it lies in theta */
    char name[96];
    size_t offset, rows, cols;
    size_t skip;        /* of their rows, before ours begin */
    int rank, optional; /* optional: may be missing in old files, and is zero then */
} tmoei_bart_tensor;

typedef struct tmoei_bart_list {
    tmoei_bart_tensor *items;
    size_t count;
} tmoei_bart_list;

/* The tensors outside the layers. */
static void tmoei_bart_list_shared(const tmoe_model *model, tmoei_bart_list *list)
{
    static const char *const names[TMOEI_SHARED] = { "model.shared.weight",
        "model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight",
        "model.encoder.layernorm_embedding.weight", "model.encoder.layernorm_embedding.bias",
        "model.decoder.layernorm_embedding.weight", "model.decoder.layernorm_embedding.bias", NULL,
        NULL, "final_logits_bias" };
    for (int i = 0; i < TMOEI_SHARED; i++) {
        if (!names[i]) continue; /* BART has no task vectors */
        const tmoei_parameter *p = &model->parameters[model->shared[i]];
        tmoei_bart_tensor *t = &list->items[list->count++];
        (void)snprintf(t->name, sizeof t->name, "%s", names[i]);
        t->offset = p->offset;
        t->rows = (size_t)p->rows;
        t->cols = (size_t)p->cols;
        if (i == TMOEI_ENCODER_POSITIONS || i == TMOEI_DECODER_POSITIONS) t->skip = TMOEI_BART_SKIP;
        t->optional = i == TMOEI_OUTPUT_BIAS;
        t->rank = p->rows > 1 || t->optional ? 2 : 1;
    }
}

/* The tensors of layer l: each piece of ours is one, two or three of theirs. */
static void tmoei_bart_list_layer(const tmoe_model *model, int l, tmoei_bart_list *list)
{
    static const char *const names[TMOEI_PIECES / 2][3] = { /* of a weight and its bias */
        { "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj" }, { "self_attn.out_proj" },
        { "self_attn_layer_norm" }, { "encoder_attn.q_proj" },
        { "encoder_attn.k_proj", "encoder_attn.v_proj" }, { "encoder_attn.out_proj" },
        { "encoder_attn_layer_norm" }, { "fc1" }, { "fc2" }, { "final_layer_norm" }
    };
    const tmoei_layer *layer = &model->layers[l];
    for (int piece = 0; piece < TMOEI_PIECES; piece++) {
        const char *const *of = names[piece / 2];
        const size_t rows = (size_t)layer->rows[piece], cols = (size_t)layer->cols[piece];
        const size_t base = layer->in_expert[piece] ? layer->block : layer->shared;
        if (rows == 0) continue; /* an encoder has no cross attention */
        size_t parts = 1;
        while (parts < 3 && of[parts]) parts++;

        for (size_t part = 0; part < parts; part++) {
            tmoei_bart_tensor *t = &list->items[list->count++];
            (void)snprintf(t->name, sizeof t->name, "model.%s.layers.%d.%s.%s",
                layer->decoder ? "decoder" : "encoder", layer->number, of[part],
                piece % 2 ? "bias" : "weight");
            t->rank = rows > 1 ? 2 : 1;
            t->rows = t->rank == 2 ? rows / parts : 1;
            t->cols = t->rank == 2 ? cols : cols / parts;
            t->offset = base + layer->offset[piece] + part * t->rows * t->cols;
        }
    }
}

/* All tensors of a dense model; item 0 is the embedding. The caller frees the items. */
static tmoe_result tmoei_bart_list_all(const tmoe_model *model, tmoei_bart_list *list)
{
    const size_t most = TMOEI_SHARED + 3 * TMOEI_PIECES * (size_t)model->L;
    list->count = 0;
    list->items = (tmoei_bart_tensor *)tmoei_alloc(model->ctx, most, sizeof *list->items, 1);
    if (!list->items) return TMOE_ERR_MEMORY;
    tmoei_bart_list_shared(model, list);
    for (int l = 0; l < model->L; l++) tmoei_bart_list_layer(model, l, list);
    return TMOE_OK;
}

/* ---- weights: one file, or several with an index ---- */

typedef struct tmoei_weights {
    tmoei_safetensors *files;
    size_t count, capacity;
} tmoei_weights;

static tmoe_result tmoei_weights_add(tmoe_ctx *ctx, tmoei_weights *w, const char *folder,
    const char *name)
{
    char path[TMOEI_PATH];
    TMOEI_TRY(tmoei_path_join(ctx, path, folder, name));
    for (size_t i = 0; i < w->count; i++)
        if (strcmp(w->files[i].path, path) == 0) return TMOE_OK;
    if (!tmoei_grow(ctx, &w->files, &w->capacity, w->count + 1, sizeof *w->files))
        return TMOE_ERR_MEMORY;
    TMOEI_TRY(tmoei_safetensors_open(ctx, &w->files[w->count], path));
    w->count++;
    return TMOE_OK;
}

/* The files that the index names; each tensor must be where it says, and nowhere else. */
static tmoe_result tmoei_weights_index(tmoe_ctx *ctx, tmoei_weights *w, const char *folder,
    const tmoei_json *json, const char *path)
{
    const tmoei_json_node *map = tmoei_json_value(json, 0, "weight_map"), *nodes = json->nodes;
    if (map->kind != TMOEI_JSON_OBJECT)
        return TMOEI_BAD_FORMAT(ctx, "%s: there is no weight_map", path);
    for (int i = map->child; i >= 0; i = nodes[i].next) {
        const char *name = nodes[i].text;
        if (!tmoei_json_is_string(json, i) || strpbrk(name, "/\\") || name[0] == '.')
            return TMOEI_BAD_FORMAT(ctx, "%s: %s must be in a file of this folder", path,
                nodes[i].key);
        TMOEI_TRY(tmoei_weights_add(ctx, w, folder, name));
    }
    for (int i = map->child; i >= 0; i = nodes[i].next)
        for (const tmoei_safetensors *f = w->files; f < w->files + w->count; f++) {
            const int named = strcmp(f->path + strlen(folder) + 1, nodes[i].text) == 0;
            if (named != (tmoei_safetensors_find(f, nodes[i].key) != NULL))
                return TMOEI_BAD_FORMAT(ctx, "%s: %s must be in %s and in no other file", path,
                    nodes[i].key, nodes[i].text);
        }
    return TMOE_OK;
}

static tmoe_result tmoei_weights_open(tmoe_ctx *ctx, tmoei_weights *w, const char *folder)
{
    static const char single[] = "model.safetensors", index[] = "model.safetensors.index.json";
    char path[TMOEI_PATH];
    tmoei_json json;
    if (tmoei_folder_has(ctx, path, folder, single))
        return tmoei_weights_add(ctx, w, folder, single);
    if (tmoei_json_file(ctx, &json, path, folder, index, 1) == TMOE_OK && json.count)
        (void)tmoei_weights_index(ctx, w, folder, &json, path);
    else
        tmoei_fail(ctx, TMOE_ERR_FILE, "%s: has neither %s nor %s", folder, single, index);
    tmoei_json_free(ctx, &json);
    return ctx->error;
}

/* ---- reading ---- */

#define TMOEI_BART_EMBEDDINGS 4

static const char *const tmoei_bart_embedding[TMOEI_BART_EMBEDDINGS] = { /* names of one tensor */
    "model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight",
    "lm_head.weight"
};

/* A name without the "model." that the oldest files do not have. */
static const char *tmoei_bart_old_name(const char *name)
{
    return strncmp(name, "model.", 6) == 0 ? name + 6 : name;
}

/* A tensor by its name or its old one, and the file it lies in; NULL where there is none. */
static const tmoei_entry *tmoei_bart_find(const tmoei_weights *w, const char *name,
    const tmoei_safetensors **file)
{
    const char *const names[] = { name, tmoei_bart_old_name(name) };
    for (int i = 0; i < 2; i++)
        for (*file = w->files; *file < w->files + w->count; ++*file) {
            const tmoei_entry *entry = tmoei_safetensors_find(*file, names[i]);
            if (entry) return entry;
        }
    return NULL;
}

/* Known, too, is what transformers ignores: marks of a version, position numbers, a classifier. */
static int tmoei_bart_knows(const tmoei_bart_list *list, const char *name)
{
    name = tmoei_bart_old_name(name);
    for (int k = 0; k < TMOEI_BART_EMBEDDINGS; k++)
        if (strcmp(tmoei_bart_old_name(tmoei_bart_embedding[k]), name) == 0) return 1;
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(tmoei_bart_old_name(list->items[i].name), name) == 0) return 1;
    return tmoei_ends_with(name, ".version") || tmoei_ends_with(name, ".position_ids")
        || strncmp(name, "classification_head.", 20) == 0;
}

/* The embedding under the first of its names that is there; the others must hold the same bytes. */
static const tmoei_entry *tmoei_bart_tied(const tmoei_weights *w, const tmoei_safetensors **home,
    char *text, size_t size)
{
    const tmoei_entry *first = NULL;
    for (int k = 0; k < TMOEI_BART_EMBEDDINGS; k++) {
        const tmoei_safetensors *file;
        const tmoei_entry *e = tmoei_bart_find(w, tmoei_bart_embedding[k], &file);
        if (!e) continue;
        if (!first) {
            first = e;
            *home = file;
        }
        const size_t bytes = first->end - first->begin;
        if (e->end - e->begin != bytes
            || memcmp(file->data + e->begin, (*home)->data + first->begin, bytes) != 0)
            tmoei_problem(text, size, "%s differs from %s: an untied embedding is not supported",
                e->name, first->name);
    }
    return first;
}

/* Notes tensors that no list knows, and those that are there by their old name as well. */
static void tmoei_bart_unknown(const tmoei_weights *w, const tmoei_bart_list *list, char *text,
    size_t size)
{
    const tmoei_safetensors *other;
    for (const tmoei_safetensors *f = w->files; f < w->files + w->count; f++)
        for (int i = 0; i < f->count; i++) {
            const char *name = f->entries[i].name;
            if (strlen(text) + 4 >= size) return; /* the message is full and says so */
            if (!tmoei_bart_knows(list, name))
                tmoei_problem(text, size, "%s is unknown", name);
            else if (strncmp(name, "model.", 6) == 0 && tmoei_bart_find(w, name + 6, &other))
                tmoei_problem(text, size, "%s is there twice, once without model.", name);
        }
}

/* All tensors into theta. What is missing, unknown or of another shape is named in one message. */
static tmoe_result tmoei_bart_read(tmoe_model *model, const tmoei_weights *w, const char *folder)
{
    tmoe_ctx *ctx = model->ctx;
    char text[TMOEI_PROBLEM_BYTES] = "";
    const tmoei_safetensors *home = NULL;
    const tmoei_entry *embedding = tmoei_bart_tied(w, &home, text, sizeof text);
    tmoei_bart_list list;
    TMOEI_TRY(tmoei_bart_list_all(model, &list));
    for (size_t i = 0; !ctx->error && i < list.count; i++) {
        const tmoei_bart_tensor *t = &list.items[i];
        const size_t first = t->skip * t->cols, n = t->rows * t->cols;
        const tmoei_safetensors *file = home;
        const tmoei_entry *e = embedding;
        if (i != TMOEI_TOKENS) e = tmoei_bart_find(w, t->name, &file);
        if (!e) {
            if (!t->optional) tmoei_problem(text, sizeof text, "%s is missing", t->name);
        } else if (e->rank != t->rank || e->count != first + n || e->cols != t->cols)
            tmoei_problem(text, sizeof text, "%s has %lu values in %d dimension%s, not (%lu,%lu)",
                t->name, (unsigned long)e->count, e->rank, e->rank == 1 ? "" : "s",
                (unsigned long)(t->rows + t->skip), (unsigned long)t->cols);
        else
            (void)tmoei_safetensors_read(ctx, file, e, first, model->theta + t->offset, n);
    }
    if (!ctx->error) tmoei_bart_unknown(w, &list, text, sizeof text);
    tmoei_free(ctx, list.items);
    return text[0] ? TMOEI_BAD_FORMAT(ctx, "%s: %s", folder, text) : ctx->error;
}

enum { TMOEI_BART_SIZES = 10, TMOEI_BART_IDS = 4, TMOEI_BART_FIELDS = 14 };

#define TMOEI_STRUCT tmoe_config
static const tmoei_field tmoei_bart_fields[TMOEI_BART_FIELDS] = { /* of config.json; ids last */
    TMOEI_NAMED("d_model", width, INT, 1, TMOEI_SIZE_MAX),
    TMOEI_NAMED("vocab_size", vocabulary, INT, 1, 1 << 24),
    TMOEI_NAMED("max_position_embeddings", source_tokens, INT, 3, TMOEI_SCORES),
    TMOEI_INT(encoder_layers, 1, 1 << 10), TMOEI_INT(decoder_layers, 1, 1 << 10),
    TMOEI_NAMED("encoder_attention_heads", encoder_heads, INT, 1, TMOEI_SIZE_MAX),
    TMOEI_NAMED("decoder_attention_heads", decoder_heads, INT, 1, TMOEI_SIZE_MAX),
    TMOEI_NAMED("encoder_ffn_dim", encoder_ffn, INT, 1, TMOEI_SIZE_MAX),
    TMOEI_NAMED("decoder_ffn_dim", decoder_ffn, INT, 1, TMOEI_SIZE_MAX),
    TMOEI_NAMED("scale_embedding", scale_embedding, BOOL, 0, 1),
    TMOEI_NAMED("bos_token_id", begin_id, INT, 0, 1 << 24),
    TMOEI_NAMED("pad_token_id", pad_id, INT, 0, 1 << 24),
    TMOEI_NAMED("eos_token_id", end_id, INT, 0, 1 << 24),
    TMOEI_NAMED("decoder_start_token_id", start_id, INT, 0, 1 << 24)
};
#undef TMOEI_STRUCT
static const tmoei_field *const tmoei_bart_ids = tmoei_bart_fields + TMOEI_BART_SIZES;

/* Notes a key that does not say the word that it must; absent keys say it. */
static void tmoei_bart_must(const tmoei_json *json, const char *key, const char *word, char *text,
    size_t size)
{
    const tmoei_json_node *node = tmoei_json_value(json, 0, key);
    const char *said = node->kind == TMOEI_JSON_STRING ? node->text : "";
    if (node->kind == TMOEI_JSON_TRUE) said = "true";
    if (node->kind == TMOEI_JSON_FALSE) said = "false";
    if (node->kind != TMOEI_JSON_NULL && strcmp(said, word) != 0)
        tmoei_problem(text, size, "%s is %.40s, must be %s", key, said, word);
}

/* config.json as ours; what BART never was is refused. */
static tmoe_result tmoei_bart_config(tmoe_ctx *ctx, const tmoei_json *json, const char *path,
    tmoe_config *c)
{
    static const char *const must[][2] = { { "model_type", "bart" },
        { "normalize_before", "false" }, { "add_final_layer_norm", "false" },
        { "static_position_embeddings", "false" }, { "tie_word_embeddings", "true" } };
    char text[512] = "";
    *c = tmoe_config_default();
    c->norm = TMOE_NORM_POST;
    c->positions = TMOE_POSITION_LEARNED;
    c->task_input = TMOE_TASK_TEXT;
    c->experts = 1;
    c->begin_in_target = c->specials_in_text = 1;
    if (tmoei_json_get(json, 0, "model_type") < 0)
        tmoei_problem(text, sizeof text, "there is no model_type");
    for (size_t i = 0; i < sizeof must / sizeof *must; i++)
        tmoei_bart_must(json, must[i][0], must[i][1], text, sizeof text);
    if (tmoei_json_says(tmoei_json_value(json, 0, "activation_function"), "relu"))
        c->activation = TMOE_RELU;
    else
        tmoei_bart_must(json, "activation_function", "gelu", text, sizeof text);
    if (text[0]) return TMOEI_BAD_FORMAT(ctx, "%s: %s", path, text);

    TMOEI_TRY(tmoei_fields_from_json(ctx, json, path, c, tmoei_bart_fields, TMOEI_BART_SIZES, 1));
    c->target_tokens = c->source_tokens;
    return tmoei_fields_from_json(ctx, json, path, c, tmoei_bart_ids, TMOEI_BART_IDS, 0);
}

#define TMOEI_STRUCT tmoe_generation
static const tmoei_field tmoei_bart_lengths[2] = { /* without the start token */
    TMOEI_NAMED("max_new_tokens", max_length, INT, 1, TMOEI_SIZE_MAX),
    TMOEI_NAMED("min_new_tokens", min_length, INT, 0, TMOEI_SIZE_MAX)
};
#undef TMOEI_STRUCT

/* Settings of transformers that are not supported. Off is the number 1 for the first
 * TMOEI_BART_ONES, 0 for the others, and null, false, and an empty text or list for all. */
enum { TMOEI_BART_ONES = 4, TMOEI_BART_REFUSED = 22 };

static const char *const tmoei_bart_refused[TMOEI_BART_REFUSED] = { "repetition_penalty",
    "encoder_repetition_penalty", "num_beam_groups", "guidance_scale", "do_sample",
    "diversity_penalty", "penalty_alpha", "encoder_no_repeat_ngram_size", "bad_words_ids",
    "force_words_ids", "constraints", "suppress_tokens", "begin_suppress_tokens",
    "forced_decoder_ids", "sequence_bias", "exponential_decay_length_penalty", "stop_strings",
    "renormalize_logits", "watermarking_config", "max_time", "token_healing", "dola_layers" };

static tmoe_result tmoei_bart_refuse(tmoe_ctx *ctx, const tmoei_json *json, const char *path)
{
    for (int i = 0; i < TMOEI_BART_REFUSED; i++) {
        const tmoei_json_node *node = tmoei_json_value(json, 0, tmoei_bart_refused[i]);
        int set = node->kind == TMOEI_JSON_TRUE || node->length > 0 || node->count > 0;
        if (node->kind == TMOEI_JSON_NUMBER) set = node->number != (i < TMOEI_BART_ONES);
        if (set)
            return TMOEI_BAD_FORMAT(ctx, "%s: %s is set, but not supported", path,
                tmoei_bart_refused[i]);
    }
    return TMOE_OK;
}

/* early_stopping, which may be a word, and an old form of a forced first token. */
static tmoe_result tmoei_bart_words(tmoe_model *model, const tmoei_json *json, const char *path)
{
    tmoe_generation *g = &model->generation;
    const tmoei_json_node *early = tmoei_json_value(json, 0, "early_stopping");
    g->early_stopping = TMOE_EARLY_STOPPING_FALSE;
    if (early->kind == TMOEI_JSON_TRUE) g->early_stopping = TMOE_EARLY_STOPPING_TRUE;
    if (tmoei_json_says(early, "never"))
        g->early_stopping = TMOE_EARLY_STOPPING_NEVER;
    else if (early->kind == TMOEI_JSON_STRING)
        return TMOEI_BAD_FORMAT(model->ctx,
            "%s: early_stopping is \"%s\", must be true, false or \"never\"", path, early->text);
    if (tmoei_json_value(json, 0, "force_bos_token_to_be_generated")->kind == TMOEI_JSON_TRUE)
        g->forced_begin_id = model->config.begin_id;
    return TMOE_OK;
}

/* generation_config.json, or config.json in old folders. */
static tmoe_result tmoei_bart_generation(tmoe_model *model, const tmoei_json *json,
    const char *path)
{
    tmoe_ctx *ctx = model->ctx;
    tmoe_config *c = &model->config;
    tmoe_generation *g = &model->generation;
    const int start = c->start_id;
    TMOEI_TRY(tmoei_bart_refuse(ctx, json, path));
    TMOEI_TRY(tmoei_bart_words(model, json, path));
    TMOEI_TRY(tmoei_fields_from_json(ctx, json, path, c, tmoei_bart_ids, TMOEI_BART_IDS, 0));
    if (tmoei_json_get(json, 0, "decoder_start_token_id") < 0 || c->start_id != start)
        return TMOEI_BAD_FORMAT(ctx,
            "%s: there is no decoder_start_token_id, or another than in config.json", path);

    g->max_length = tmoei_least(c->target_tokens, 21); /* transformers' default */
    TMOEI_TRY(tmoei_fields_from_json(ctx, json, path, g, tmoei_generation_fields + 1,
        TMOEI_GENERATION_FIELDS - 1, 0)); /* all but early_stopping */
    TMOEI_TRY(tmoei_fields_from_json(ctx, json, path, g, tmoei_bart_lengths, 2, 0)); /* they win */
    if (tmoei_json_value(json, 0, "max_new_tokens")->kind != TMOEI_JSON_NULL) g->max_length++;
    if (tmoei_json_value(json, 0, "min_new_tokens")->kind != TMOEI_JSON_NULL) g->min_length++;
    return TMOE_OK;
}

/* The model that the folder's settings describe, still without its weights. */
static tmoe_model *tmoei_bart_settings(tmoe_ctx *ctx, const char *folder)
{
    char path[TMOEI_PATH];
    tmoei_json json, own;
    tmoe_config c;
    tmoe_tokenizer *tokenizer = NULL;
    tmoe_model *model = NULL;
    memset(&own, 0, sizeof own);
    if (tmoei_json_file(ctx, &json, path, folder, "config.json", 0) == TMOE_OK
        && tmoei_bart_config(ctx, &json, path, &c) == TMOE_OK
        && (tmoei_folder_has(ctx, path, folder, "tokenizer.json")
            || tmoei_folder_has(ctx, path, folder, "vocab.json")))
        tokenizer = tmoe_tokenizer_load(ctx, folder);
    if (!ctx->error) model = tmoei_model_new(ctx, &c, tokenizer, NULL, 0);
    tmoe_tokenizer_destroy(tokenizer);

    if (model && tmoei_json_file(ctx, &own, path, folder, "generation_config.json", 1) == TMOE_OK) {
        if (own.count > 0)
            (void)tmoei_bart_generation(model, &own, path);
        else if (tmoei_path_join(ctx, path, folder, "config.json") == TMOE_OK) /* old folders */
            (void)tmoei_bart_generation(model, &json, path);
    }
    tmoei_json_free(ctx, &json);
    tmoei_json_free(ctx, &own);
    return tmoei_model_if(!ctx->error, model);
}

TMOE_DEF tmoe_model *tmoe_bart_load(tmoe_ctx *ctx, const char *folder)
{
    tmoei_weights weights = { NULL, 0, 0 };
    tmoei_begin(ctx);
    tmoe_model *model = tmoei_bart_settings(ctx, folder);
    if (model && tmoei_weights_open(ctx, &weights, folder) == TMOE_OK
        && tmoei_theta_alloc(model) == TMOE_OK)
        (void)tmoei_bart_read(model, &weights, folder);
    for (size_t i = 0; i < weights.count; i++) tmoei_safetensors_close(ctx, &weights.files[i]);
    tmoei_free(ctx, weights.files);
    return tmoei_model_if(!ctx->error, model);
}

/* ---- writing ---- */

static tmoe_result tmoei_make_folder(tmoe_ctx *ctx, const char *folder)
{
    errno = 0;
#if defined(_WIN32)
    const int made = _mkdir(folder) == 0;
#else
    const int made = mkdir(folder, 0777) == 0;
#endif
    if (made || errno == EEXIST) return TMOE_OK;
    return tmoei_fail(ctx, TMOE_ERR_FILE, "%s: cannot be made: %s", folder, strerror(errno));
}

static void tmoei_write_bart_config(const tmoe_model *model, tmoei_buffer *text)
{
    const tmoe_config *c = &model->config;
    tmoei_buffer_print(model->ctx, text,
        "{\"architectures\":[\"BartForConditionalGeneration\"],"
        "\"model_type\":\"bart\",\"is_encoder_decoder\":true,\"tie_word_embeddings\":true,"
        "\"dtype\":\"float32\",\"activation_function\":\"%s\",",
        c->activation == TMOE_RELU ? "relu" : "gelu");
    tmoei_fields_to_json(model->ctx, c, tmoei_bart_fields, TMOEI_BART_FIELDS, text, "}\n");
}

static void tmoei_write_bart_generation(const tmoe_model *model, tmoei_buffer *text)
{
    static const char *const early[] = { "false", "true", "\"never\"" }; /* by the enum */
    tmoe_generation g = model->generation;
    if (g.max_length == 0) g.max_length = model->config.target_tokens;
    tmoei_buffer_print(model->ctx, text, "{\"early_stopping\":%s,", early[g.early_stopping]);
    tmoei_fields_to_json(model->ctx, &model->config, tmoei_bart_ids, TMOEI_BART_IDS, text, ",");
    tmoei_fields_to_json(model->ctx, &g, tmoei_generation_fields + 1, TMOEI_GENERATION_FIELDS - 1,
        text, "}\n");
}

static void tmoei_write_bart_tokenizer(const tmoe_model *model, tmoei_buffer *text)
{
    tmoei_buffer_print(model->ctx, text,
        "{\"tokenizer_class\":\"BartTokenizer\",\"model_max_length\":%d,"
        "\"add_prefix_space\":%s}\n",
        model->config.source_tokens,
        tmoei_bpe_of(model->tokenizer)->prefix_space ? "true" : "false");
}

/* The files beside the weights; the last two need a tokenizer. */
static const tmoei_part_writer tmoei_bart_files[] = { { "config.json", tmoei_write_bart_config },
    { "generation_config.json", tmoei_write_bart_generation },
    { "tokenizer.json", tmoei_write_tokenizer },
    { "tokenizer_config.json", tmoei_write_bart_tokenizer } };

static tmoe_result tmoei_bart_write_weights(const tmoe_model *model, const char *folder)
{
    tmoe_ctx *ctx = model->ctx;
    char path[TMOEI_PATH];
    tmoei_bart_list list;
    tmoei_writer writer;
    memset(&writer, 0, sizeof writer);
    TMOEI_TRY(tmoei_bart_list_all(model, &list));
    tmoei_writer_metadata(ctx, &writer, "format", "pt", 2);
    for (size_t i = 0; i < list.count; i++) {
        const tmoei_bart_tensor *t = &list.items[i];
        tmoei_writer_tensor(ctx, &writer, t->name, t->rank, t->skip, t->rows, t->cols,
            model->theta + t->offset);
    }
    if (!ctx->error && tmoei_path_join(ctx, path, folder, "model.safetensors") == TMOE_OK)
        (void)tmoei_writer_save(ctx, &writer, path);
    tmoei_free(ctx, list.items);
    tmoei_writer_free(ctx, &writer);
    return ctx->error;
}

static tmoe_result tmoei_bart_write(const tmoe_model *model, const char *folder)
{
    tmoe_ctx *ctx = model->ctx;
    char path[TMOEI_PATH];
    TMOEI_TRY(tmoei_bart_write_weights(model, folder));
    for (int i = 0; i < (model->tokenizer ? 4 : 2) && !ctx->error; i++) {
        tmoei_buffer text = { NULL, 0, 0, 0 };
        tmoei_writer writer;
        memset(&writer, 0, sizeof writer);
        tmoei_bart_files[i].write(model, &text);
        if (!text.failed && tmoei_path_join(ctx, path, folder, tmoei_bart_files[i].name) == TMOE_OK
            && tmoei_writer_open(ctx, &writer, path) == TMOE_OK) {
            tmoei_writer_bytes(&writer, text.data, text.length);
            (void)tmoei_writer_commit(ctx, &writer);
        }
        tmoei_writer_free(ctx, &writer);
        tmoei_buffer_free(ctx, &text);
    }
    return ctx->error;
}

/* Stores the caller's route, or the known task's, in cut (R, E). */
static tmoe_result tmoei_export_route(tmoe_model *model, const char *task_name, const float *route,
    float *cut)
{
    const int E = model->config.experts;
    if (route)
        memcpy(cut, route, model->route_width * sizeof(float));
    else {
        const int known = tmoei_known_task(model, "export_dense", task_name);
        if (known < 0) return model->ctx->error;
        TMOEI_TRY(tmoe_route_of_task(model, known, cut));
    }
    for (int l = 0; l < model->R; l++)
        if (model->config.mix != TMOE_MIX_PARAM && tmoei_one_hot(cut + l * E, E) < 0)
            return tmoei_fail(model->ctx, TMOE_ERR_ARGUMENT,
                "export_dense: routed layer %d mixes outputs of experts (see TMOE_MIX_PARAM)", l);
    return TMOE_OK;
}

TMOE_DEF tmoe_result tmoe_export_dense(tmoe_model *model, const char *task_name, const float *route,
    const char *folder)
{
    tmoe_ctx *ctx = model->ctx;
    tmoe_config c = model->config;
    const int vector = c.task_input & TMOE_TASK_VECTOR;
    tmoe_model *dense = NULL;
    float *cut = NULL;
    int task = 0;
    tmoei_begin(ctx);
    if (c.norm != TMOE_NORM_POST || c.source_tokens != c.target_tokens
        || c.positions != TMOE_POSITION_LEARNED)
        return tmoei_fail(ctx, TMOE_ERR_ARGUMENT,
            "export_dense: needs TMOE_NORM_POST, TMOE_POSITION_LEARNED and source_tokens = "
            "target_tokens, as in BART");
    TMOEI_TRY(tmoei_search_check(model, folder));
    if (vector) task = tmoei_known_task(model, "export_dense", task_name);
    if (task < 0) return ctx->error;
    if (model->R > 0) {
        cut = (float *)tmoei_alloc(ctx, model->route_width, sizeof(float), 0);
        if (cut) (void)tmoei_export_route(model, task_name, route, cut);
    }
    c.experts = 1;
    c.task_input &= ~TMOE_TASK_VECTOR; /* becomes part of the positions */
    const tmoe_task *tasks = vector ? &model->tasks[task] : NULL;
    if (!ctx->error) dense = tmoe_model_derive(ctx, model, cut, &c, tasks, vector != 0);
    if (dense && tmoei_make_folder(ctx, folder) == TMOE_OK) (void)tmoei_bart_write(dense, folder);
    tmoe_model_destroy(dense);
    tmoei_free(ctx, cut);
    return ctx->error;
}

#endif /* TMOE_NO_BART */
#endif /* TMOE_NO_STDIO */

#ifdef __cplusplus
}
#endif
#pragma pop_macro("A")
#pragma pop_macro("B")
#pragma pop_macro("C")
#pragma pop_macro("D")
#pragma pop_macro("E")
#pragma pop_macro("F")
#pragma pop_macro("G")
#pragma pop_macro("K")
#pragma pop_macro("L")
#pragma pop_macro("M")
#pragma pop_macro("N")
#pragma pop_macro("P")
#pragma pop_macro("Q")
#pragma pop_macro("R")
#pragma pop_macro("S")
#pragma pop_macro("T")
#pragma pop_macro("U")
#pragma pop_macro("V")
#pragma pop_macro("W")
#pragma pop_macro("X")
#pragma pop_macro("Y")
#pragma pop_macro("max")
#pragma pop_macro("slots")
#endif /* not TMOEI_PASS */
#endif /* TASKMOE_IMPLEMENTATION */

/* LICENCE - choose what you prefer
 * A. Public domain (www.unlicense.org). This is free and unencumbered software released into the
 * public domain. Anyone is free to copy, modify, publish, use, compile, sell, or distribute this
 * software, in source or binary form, for any purpose, commercial or non-commercial, and by any
 * means.
 *
 * B. MIT. Copyright (c) 2026 the taskmoe authors. Permission is hereby granted, free of charge, to
 * any person obtaining a copy of this software and associated documentation files (the "Software"),
 * to deal in the Software without restriction, including without limitation the rights to use,
 * copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
 * permit persons to whom the Software is furnished to do so, subject to the following conditions:
 * The above copyright notice and this permission notice shall be included in all copies or
 * substantial portions of the Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY
 * KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS
 * FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS
 * BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 * OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
 * IN THE SOFTWARE. */
