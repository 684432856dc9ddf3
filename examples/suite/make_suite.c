/* make_suite: writes the embedded suite, the same files every time.
 *   usage: make_suite FOLDER      (tasks/NAME.tsv, tasks.tsv, splits/NAME.json)
 * The last 20 % of a task's lines are its test lines. A list or sentence is used once in the whole
 * suite, so a test list never occurs in training, in no task. */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lexicon.h"

#define LINES 240
#define TASKS_MAX 320
#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- random numbers: SplitMix64, seeded by the task's name, so that one task does not move
 * another ---- */
static uint64_t state;

static uint64_t next_random(void)
{
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static int below(int n)
{
    return (int)(next_random() % (uint64_t)n);
}

static uint64_t hash_text(const char *text)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (; *text; text++) h = (h ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    return h;
}

/* ---- inputs that were used already: lists and sentences in the whole suite, words in their task
 * */
static char *used[200000];
static int used_count;

static int use(const char *scope, const char *text)
{
    static int table[1 << 19];
    char key[512];
    uint64_t at;
    snprintf(key, sizeof key, "%s|%s", scope, text);
    for (at = hash_text(key) & ((1 << 19) - 1); table[at]; at = (at + 1) & ((1 << 19) - 1))
        if (!strcmp(used[table[at] - 1], key)) return 0;
    used[used_count] = (char *)malloc(strlen(key) + 1);
    strcpy(used[used_count], key);
    table[at] = ++used_count;
    return 1;
}

/* ---- the task that is being written ---------------------------------------------------------- */
typedef struct task_info {
    char name[64], category[24], subcategory[32], metric[16], labels[160], instruction[160];
    int lines, memorization;
    int held;             /* which part of few_shot a task is in that is no composition */
    int selection, wheel; /* of a composition, see composition_part; else -1 */
} task_info;

enum { NOWHERE = -1, TRAIN, DEV, TEST };

static task_info tasks[TASKS_MAX];
static int task_count;

static struct {
    char input[160], output[96];
} lines[1024];

static int line_count;
static const char *folder;

static void begin(const char *name)
{
    memset(&tasks[task_count], 0, sizeof tasks[task_count]);
    snprintf(tasks[task_count].name, sizeof tasks[task_count].name, "%s", name);
    tasks[task_count].selection = tasks[task_count].wheel = -1;
    line_count = 0;
    state = hash_text(name);
}

static int add(const char *scope, const char *input, const char *output)
{
    if (!*output || strlen(input) >= sizeof lines[0].input
        || strlen(output) >= sizeof lines[0].output
        || !use(scope ? scope : tasks[task_count].name, input))
        return 0;
    strcpy(lines[line_count].input, input);
    strcpy(lines[line_count++].output, output);
    return 1;
}

/* by_hash: facts that are told from two sides keep their side of the 80/20 border: the order is
 * that of `keys` */
static void end(const char *category, const char *subcategory, const char *metric,
    const char *labels, int memorization, int held, const char *format, ...)
{
    task_info *t = &tasks[task_count++];
    char path[512];
    FILE *file;
    va_list arguments;
    int i;
    snprintf(t->category, sizeof t->category, "%s", category);
    snprintf(t->subcategory, sizeof t->subcategory, "%s", subcategory);
    snprintf(t->metric, sizeof t->metric, "%s", metric);
    snprintf(t->labels, sizeof t->labels, "%s", labels);
    va_start(arguments, format);
    vsnprintf(t->instruction, sizeof t->instruction, format, arguments);
    va_end(arguments);
    t->lines = line_count;
    t->memorization = memorization;
    t->held = held;
    snprintf(path, sizeof path, "%s/tasks/%s.tsv", folder, t->name);
    file = fopen(path, "wb");
    if (!file) {
        perror(path);
        exit(1);
    }
    for (i = 0; i < line_count; i++) fprintf(file, "%s\t%s\n", lines[i].input, lines[i].output);
    if (fclose(file)) {
        perror(path);
        exit(1);
    }
}

static void shuffle_lines(void)
{
    int i;
    for (i = line_count - 1; i > 0; i--) {
        const int j = below(i + 1);
        char t[160];
        strcpy(t, lines[i].input);
        strcpy(lines[i].input, lines[j].input);
        strcpy(lines[j].input, t);
        strcpy(t, lines[i].output);
        strcpy(lines[i].output, lines[j].output);
        strcpy(lines[j].output, t);
    }
}

/* ---- words ----------------------------------------------------------------------------------- */
static int kind_size(int k)
{
    int n = 0;
    while (kinds[k].words[n]) n++;
    return n;
}

static const char *word_of(int k)
{
    return kinds[k].words[below(kind_size(k))];
}

static const char *any_word(int *k)
{
    *k = below(KINDS);
    return word_of(*k);
}

static int list_size(const char *const *list)
{
    int n = 0;
    while (list[n]) n++;
    return n;
}

static int is_vowel(char c)
{
    return strchr("aeiou", c) != NULL;
}

/* ---- transformations of a word --------------------------------------------------------------- */
typedef int transform(const char *word, char *out);

static int t_upper(const char *w, char *o)
{
    for (; *w; w++) *o++ = (char)(*w >= 'a' && *w <= 'z' ? *w - 32 : *w);
    *o = 0;
    return 1;
}

static int t_first(const char *w, char *o)
{
    o[0] = w[0];
    o[1] = 0;
    return 1;
}

static int t_last(const char *w, char *o)
{
    o[0] = w[strlen(w) - 1];
    o[1] = 0;
    return 1;
}

static int t_backwards(const char *w, char *o)
{
    size_t n = strlen(w), i;
    for (i = 0; i < n; i++) o[i] = w[n - 1 - i];
    o[n] = 0;
    return 1;
}

static int t_twice(const char *w, char *o)
{
    sprintf(o, "%s %s", w, w);
    return 1;
}

static int t_drop_first(const char *w, char *o)
{
    strcpy(o, w + 1);
    return 1;
}

static int t_drop_last(const char *w, char *o)
{
    strcpy(o, w);
    o[strlen(o) - 1] = 0;
    return 1;
}

static int t_vowels(const char *w, char *o)
{
    for (; *w; w++)
        if (!is_vowel(*w)) *o++ = *w;
    *o = 0;
    return 1;
}

static int t_capital(const char *w, char *o)
{
    strcpy(o, w);
    o[0] = (char)(o[0] - 32);
    return 1;
}

static int t_hyphens(const char *w, char *o)
{
    for (; *w; w++) {
        *o++ = *w;
        if (w[1]) *o++ = '-';
    }
    *o = 0;
    return 1;
}

static int t_count(const char *w, char *o)
{
    sprintf(o, "%d", (int)strlen(w));
    return 1;
}

static int t_stars(const char *w, char *o)
{
    for (; *w; w++) *o++ = is_vowel(*w) ? '*' : *w;
    *o = 0;
    return 1;
}

static const struct {
    const char *name, *before, *behind;
    transform *f;
} transforms[] = { { "upper_case", "Write ", " in upper case.", t_upper },
    { "first_letter", "Give the first letter of ", ".", t_first },
    { "last_letter", "Give the last letter of ", ".", t_last },
    { "backwards", "Spell ", " backwards.", t_backwards },
    { "twice", "Write ", " twice.", t_twice },
    { "drop_first_letter", "Write ", " without its first letter.", t_drop_first },
    { "drop_last_letter", "Write ", " without its last letter.", t_drop_last },
    { "without_vowels", "Remove the vowels from ", ".", t_vowels },
    { "capitalised", "Write ", " with a capital letter.", t_capital },
    { "hyphens", "Spell ", " with hyphens between the letters.", t_hyphens },
    { "letter_count", "How many letters does ", " have?", t_count },
    { "stars_for_vowels", "Replace the vowels of ", " by stars.", t_stars } };

#define TRANSFORMS COUNT(transforms)

/* ---- lists, and selections from them --------------------------------------------------------- */
typedef struct list {
    const char *words[6];
    int kinds[6], count;
} list;

static int in_list(const list *l, const char *word)
{
    int i;
    for (i = 0; i < l->count; i++)
        if (!strcmp(l->words[i], word)) return 1;
    return 0;
}

/* 3 to 5 different words. only >= 0: exactly one word of that kind. */
static void make_list(list *l, int only)
{
    const int count = 3 + below(3), place = below(count);
    for (l->count = 0; l->count < count;) {
        int k;
        const char *word = any_word(&k);
        if (only >= 0) {
            if (l->count == place) {
                k = only;
                word = word_of(k);
            } else if (k == only)
                continue;
        }
        if (in_list(l, word)) continue;
        l->words[l->count] = word;
        l->kinds[l->count++] = k;
    }
}

static void join(const list *l, char *out)
{
    int i;
    for (*out = 0, i = 0; i < l->count; i++) {
        if (i) strcat(out, ", ");
        strcat(out, l->words[i]);
    }
}

typedef int selection(const list *l, int argument); /* place in the list, or -1 */

static int s_place(const list *l, int n)
{
    return n < 0 ? l->count + n : n < l->count ? n : -1;
}

static int s_kind(const list *l, int k)
{
    int i;
    for (i = 0; i < l->count; i++)
        if (l->kinds[i] == k) return i;
    return -1;
}

static int s_longest(const list *l, int sign)
{
    int i, best = 0, ties = 0;
    for (i = 1; i < l->count; i++)
        if (sign * ((int)strlen(l->words[i]) - (int)strlen(l->words[best])) > 0) best = i;
    for (i = 0; i < l->count; i++) ties += strlen(l->words[i]) == strlen(l->words[best]);
    return ties == 1 ? best : -1;
}

static int s_alphabet(const list *l, int sign)
{
    int i, best = 0;
    for (i = 1; i < l->count; i++)
        if (sign * strcmp(l->words[i], l->words[best]) < 0) best = i;
    return best;
}

static const struct {
    const char *name, *phrase;
    selection *f;
    int argument, kind;
} selections[] = { { "first", "the first word of the list", s_place, 0, -1 },
    { "second", "the second word of the list", s_place, 1, -1 },
    { "third", "the third word of the list", s_place, 2, -1 },
    { "last", "the last word of the list", s_place, -1, -1 },
    { "animal", "the animal in the list", s_kind, 0, 0 },
    { "fruit", "the fruit in the list", s_kind, 1, 1 },
    { "colour", "the colour in the list", s_kind, 2, 2 },
    { "tool", "the tool in the list", s_kind, 3, 3 },
    { "vehicle", "the vehicle in the list", s_kind, 4, 4 },
    { "profession", "the profession in the list", s_kind, 9, 9 },
    { "longest", "the longest word of the list", s_longest, 1, -1 },
    { "alphabetically_first", "the word of the list that comes first in the alphabet", s_alphabet,
        1, -1 } };

#define SELECTIONS COUNT(selections)

static void select_and_transform(int s, int t, char *input, char *output)
{
    for (;;) {
        list l;
        int place;
        make_list(&l, selections[s].kind);
        place = selections[s].f(&l, selections[s].argument);
        if (place < 0) continue;
        join(&l, input);
        if (t < 0)
            strcpy(output, l.words[place]);
        else
            transforms[t].f(l.words[place], output);
        if (*output) return;
    }
}

/* Which compositions a split holds out. Selection s and transformation t have a place on a wheel of
 * twelve, where each place has one cell in every row and every column of the square. Places 2 and 11
 * are not in the suite: it need not hold every pair. Of the others a split holds out three, and a
 * fourth in the even rows for development: whatever `turn` of the wheel, every part is still seen in
 * other cells. Fixed by arithmetic before any model was trained. */
static int wheel_place(int s, int t)
{
    return (5 * s + 7 * t) % 12;
}

static int composition_part(int s, int wheel, int turn)
{
    const int place = (wheel + 12 - turn) % 12;
    if (place == 0 || place == 4 || place == 9) return TEST;
    if (place == 6 && s % 2 == 0) return DEV;
    return TRAIN;
}

static void make_compositions(void)
{
    int s, t;
    for (s = 0; s < SELECTIONS; s++)
        for (t = 0; t < TRANSFORMS; t++) {
            char name[80], input[200], output[100];
            const int wheel = wheel_place(s, t);
            if (wheel == 2 || wheel == 11) continue;
            snprintf(name, sizeof name, "%s_%s", selections[s].name, transforms[t].name);
            begin(name);
            tasks[task_count].selection = s;
            tasks[task_count].wheel = wheel;
            while (line_count < LINES) {
                select_and_transform(s, t, input, output);
                add("list", input, output);
            }
            end("composition", transforms[t].name, "exact_match", "", 0, NOWHERE, "%s%s%s",
                transforms[t].before, selections[s].phrase, transforms[t].behind);
        }
}

static void make_selections(void)
{
    static const struct {
        const char *name, *phrase;
        int kind;
    } more[] = { { "garment", "the piece of clothing in the list", 5 },
        { "furniture", "the piece of furniture in the list", 6 },
        { "instrument", "the musical instrument in the list", 7 },
        { "body_part", "the part of the body in the list", 8 },
        { "food", "the food in the list", 10 }, { "building", "the building in the list", 11 } };

    char name[80], input[200], output[100];
    int s, i;
    for (s = 0; s < SELECTIONS; s++) {
        snprintf(name, sizeof name, "select_%s", selections[s].name);
        begin(name);
        while (line_count < LINES) {
            select_and_transform(s, -1, input, output);
            add("list", input, output);
        }
        end("extraction", "selection", "exact_match", "", 0, TRAIN, "Write %s.",
            selections[s].phrase);
    }
    for (i = 0; i < COUNT(more); i++) {
        snprintf(name, sizeof name, "select_%s", more[i].name);
        begin(name);
        while (line_count < LINES) {
            list l;
            make_list(&l, more[i].kind);
            join(&l, input);
            add("list", input, l.words[s_kind(&l, more[i].kind)]);
        }
        end("extraction", "selection", "exact_match", "", 0,
            i < 3        ? TRAIN
                : i == 5 ? DEV
                         : TEST,
            "Write %s.", more[i].phrase);
    }
    begin("select_shortest");
    while (line_count < LINES) {
        list l;
        int place;
        make_list(&l, -1);
        place = s_longest(&l, -1);
        join(&l, input);
        if (place >= 0) add("list", input, l.words[place]);
    }
    end("extraction", "selection", "exact_match", "", 0, TEST,
        "Write the shortest word of the list.");
    begin("select_repeated");
    while (line_count < LINES) {
        list l;
        int from, to;
        make_list(&l, -1);
        from = below(l.count);
        to = below(l.count);
        if (from == to) continue;
        l.words[to] = l.words[from];
        join(&l, input);
        add("list", input, l.words[from]);
    }
    end("extraction", "selection", "exact_match", "", 0, TRAIN,
        "Write the word that comes twice in the list.");
}

static void make_transforms(void)
{
    char name[80], output[100];
    int t, k, i;
    for (t = 0; t < TRANSFORMS; t++) {
        snprintf(name, sizeof name, "word_%s", transforms[t].name);
        begin(name);
        for (k = 0; k < KINDS; k++)
            for (i = 0; i < kind_size(k); i++) {
                transforms[t].f(kinds[k].words[i], output);
                add(NULL, kinds[k].words[i], output);
            }
        shuffle_lines();
        end("transformation", transforms[t].name, "exact_match", "", 0, TRAIN, "%sthe word%s",
            transforms[t].before, transforms[t].behind);
    }
    begin("list_reversed");
    while (line_count < LINES) {
        char input[200], out[200];
        list l, r;
        make_list(&l, -1);
        r.count = l.count;
        for (i = 0; i < l.count; i++) r.words[i] = l.words[l.count - 1 - i];
        join(&l, input);
        join(&r, out);
        add("list", input, out);
    }
    end("transformation", "list", "exact_match", "", 0, TRAIN, "Write the list in reverse order.");
    begin("list_sorted");
    while (line_count < LINES) {
        char input[200], out[200];
        list l, r;
        int j;
        make_list(&l, -1);
        join(&l, input);
        r = l;
        for (i = 0; i < r.count; i++)
            for (j = i + 1; j < r.count; j++)
                if (strcmp(r.words[j], r.words[i]) < 0) {
                    const char *w = r.words[i];
                    r.words[i] = r.words[j];
                    r.words[j] = w;
                }
        join(&r, out);
        add("list", input, out);
    }
    end("transformation", "list", "exact_match", "", 0, TRAIN,
        "Sort the list in alphabetical order.");
    begin("list_without_first");
    while (line_count < LINES) {
        char input[200], out[200];
        list l, r;
        make_list(&l, -1);
        join(&l, input);
        for (r.count = 0; r.count < l.count - 1; r.count++) r.words[r.count] = l.words[r.count + 1];
        join(&r, out);
        add("list", input, out);
    }
    end("transformation", "list", "exact_match", "", 0, TRAIN,
        "Write the list without its first word.");
    begin("list_without_last");
    while (line_count < LINES) {
        char input[200], out[200];
        list l, r;
        make_list(&l, -1);
        join(&l, input);
        r = l;
        r.count--;
        join(&r, out);
        add("list", input, out);
    }
    end("transformation", "list", "exact_match", "", 0, TEST,
        "Write the list without its last word.");
    begin("list_upper_case");
    while (line_count < LINES) {
        char input[200], out[200];
        list l;
        make_list(&l, -1);
        join(&l, input);
        t_upper(input, out);
        add("list", input, out);
    }
    end("transformation", "list", "exact_match", "", 0, TEST,
        "Write the whole list in upper case.");
}

/* A yes/no question about a list; both answers come equally often. */
static void yes_no(const char *name, const char *subcategory, int held, const char *instruction,
    int (*ask)(const list *l, int argument), int argument, int only)
{
    int wanted = 0;
    char input[200];
    begin(name);
    while (line_count < LINES) {
        list l;
        make_list(&l, wanted ? only : -1);
        if (!ask(&l, argument) != !wanted) continue;
        join(&l, input);
        if (add("list", input, wanted ? "yes" : "no")) wanted = below(2);
    }
    end("classification", subcategory, "accuracy", "yes|no", 0, held, "%s", instruction);
}

static int q_has_kind(const list *l, int k)
{
    return s_kind(l, k) >= 0;
}

static int q_sorted(const list *l, int unused)
{
    int i;
    (void)unused;
    for (i = 1; i < l->count; i++)
        if (strcmp(l->words[i - 1], l->words[i]) > 0) return 0;
    return 1;
}

static int q_first_longer(const list *l, int unused)
{
    (void)unused;
    return strlen(l->words[0]) > strlen(l->words[1]);
}

static int q_same_letter(const list *l, int unused)
{
    (void)unused;
    return l->words[0][0] == l->words[1][0];
}

static int q_count_is(const list *l, int n)
{
    return l->count == n;
}

static int q_last_vowel(const list *l, int unused)
{
    const char *w = l->words[l->count - 1];
    (void)unused;
    return is_vowel(w[strlen(w) - 1]);
}

static void make_classification(void)
{
    static const char *const has[] = { "animal", "fruit", "colour", "tool", "vehicle",
        "piece of clothing", "piece of furniture", "musical instrument" };
    char labels[200] = "", name[80], text[200];
    int k, i, pass;
    for (k = 0; k < KINDS; k++) {
        if (k) strcat(labels, "|");
        strcat(labels, kinds[k].name);
    }
    begin("kind_of_word");
    for (k = 0; k < KINDS; k++)
        for (i = 0; i < kind_size(k); i++) add(NULL, kinds[k].words[i], kinds[k].name);
    shuffle_lines();
    end("classification", "kind", "accuracy", labels, 1, TRAIN, "What kind of thing is the word?");
    for (k = 0; k < 12; k++) { /* is it a ...: yes and no equally often */
        static const int held[12] = { TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TEST, TRAIN,
            TRAIN, DEV, TEST };
        const int n = kind_size(k);
        snprintf(name, sizeof name, "is_%s", kinds[k].name);
        for (i = 0; name[i]; i++)
            if (name[i] == ' ') name[i] = '_';
        begin(name);
        for (i = 0; i < n; i++) add(NULL, kinds[k].words[i], "yes");
        while (line_count < 2 * n) {
            int other;
            const char *w = any_word(&other);
            if (other != k) add(NULL, w, "no");
        }
        shuffle_lines();
        end("classification", "is_it", "accuracy", "yes|no", 1, held[k], "Is the word %s %s?",
            strchr("aeiou", kinds[k].name[0]) ? "an" : "a", kinds[k].name);
    }
    for (k = 0; k < 8; k++) {
        static const int held[8] = { TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TEST, DEV };
        snprintf(name, sizeof name, "has_%s", has[k]);
        for (i = 0; name[i]; i++)
            if (name[i] == ' ') name[i] = '_';
        snprintf(text, sizeof text, "Is there %s %s in the list?",
            strchr("aeiou", has[k][0]) ? "an" : "a", has[k]);
        yes_no(name, "is_there", held[k], text, q_has_kind, k, k);
    }
    yes_no("list_is_sorted", "list", TRAIN, "Is the list in alphabetical order?", q_sorted, 0, -1);
    yes_no("first_longer_than_second", "list", TRAIN, "Is the first word longer than the second?",
        q_first_longer, 0, -1);
    yes_no("first_two_same_letter", "list", TRAIN,
        "Do the first two words start with the same letter?", q_same_letter, 0, -1);
    yes_no("list_has_four_words", "list", TEST, "Are there four words in the list?", q_count_is, 4,
        -1);
    yes_no("last_ends_in_vowel", "list", TRAIN, "Does the last word end in a vowel?", q_last_vowel,
        0, -1);
    begin("list_word_count");
    while (line_count < LINES) {
        list l;
        char out[8];
        make_list(&l, -1);
        join(&l, text);
        sprintf(out, "%d", l.count);
        add("list", text, out);
    }
    end("classification", "list", "accuracy", "3|4|5", 0, TRAIN, "How many words are in the list?");
    for (pass = 0; pass < 2; pass++) { /* a word's beginning and end */
        begin(pass ? "ends_in_vowel" : "starts_with_vowel");
        for (k = 0; k < KINDS; k++)
            for (i = 0; i < kind_size(k); i++) {
                const char *w = kinds[k].words[i];
                add(NULL, w, is_vowel(pass ? w[strlen(w) - 1] : w[0]) ? "yes" : "no");
            }
        shuffle_lines();
        end("classification", "letters", "accuracy", "yes|no", 0, TRAIN,
            pass ? "Does the word end in a vowel?" : "Does the word start with a vowel?");
    }
    begin("number_even_or_odd");
    while (line_count < LINES) {
        int n = below(1000);
        char in[8];
        sprintf(in, "%d", n);
        add(NULL, in, n % 2 ? "odd" : "even");
    }
    end("classification", "number", "accuracy", "even|odd", 0, TRAIN, "Is the number even or odd?");
    begin("larger_number");
    while (line_count < LINES) {
        int a = below(1000), b = below(1000);
        char in[16], out[8];
        if (a == b) continue;
        sprintf(in, "%d, %d", a, b);
        sprintf(out, "%d", a > b ? a : b);
        add(NULL, in, out);
    }
    end("classification", "number", "exact_match", "", 0, TRAIN,
        "Which of the two numbers is larger?");
    begin("smaller_number");
    while (line_count < LINES) {
        int a = below(1000), b = below(1000);
        char in[16], out[8];
        if (a == b) continue;
        sprintf(in, "%d, %d", a, b);
        sprintf(out, "%d", a < b ? a : b);
        add(NULL, in, out);
    }
    end("classification", "number", "exact_match", "", 0, TEST,
        "Which of the two numbers is smaller?");
    begin("sentiment");
    while (line_count < LINES) {
        const int good = below(2), form = below(3);
        const char *adjective = good ? good_adjectives[below(COUNT(good_adjectives))]
                                     : bad_adjectives[below(COUNT(bad_adjectives))],
                   *what = reviewed[below(COUNT(reviewed))];
        if (form == 0)
            sprintf(text, "The %s was %s.", what, adjective);
        else if (form == 1)
            sprintf(text, "What a %s %s!", adjective, what);
        else
            sprintf(text, "I thought the %s was really %s.", what, adjective);
        if (form == 1 && is_vowel(adjective[0])) continue;
        add("sentence", text, good ? "positive" : "negative");
    }
    end("classification", "sentiment", "accuracy", "positive|negative", 0, TRAIN,
        "Is the sentence positive or negative?");
    begin("word_language");
    for (i = 0; i < COUNT(translations); i++) {
        static const char *const languages[4] = { "English", "Spanish", "French", "German" };
        static const char *const at_home_twice[] = { "table", "pan", "pain", "chat", "main",
            "grand", "rot", "bad", "mar", "mesa", "sol", "vent", "alt", "gut", "Hand", "hand",
            "Wind", "wind", "fin", "bon", "rue", "pez", "un", "mer", "chair", "man", "Mann", "eau",
            "neu" };
        for (k = 0; k < 3; k++) { /* three of the four: 180 words */
            const char *word = translations[i][(i + k) % 4];
            for (pass = 0; pass < COUNT(at_home_twice) && strcmp(word, at_home_twice[pass]);
                 pass++) {}
            if (pass == COUNT(at_home_twice)) add(NULL, word, languages[(i + k) % 4]);
        }
    }
    shuffle_lines();
    end("classification", "language", "accuracy", "English|Spanish|French|German", 1, TRAIN,
        "Which language is the word: English, Spanish, French or German?");
}

static void make_sentences(void)
{
    static const char *const did[] = { "saw", "bought", "sold", "painted", "counted", "carried",
        "cleaned", "wanted" };
    int task;
    for (task = 0; task < 4; task++) {
        static const char *const names[4] = { "number_in_sentence", "name_in_sentence",
            "place_in_sentence", "verb_in_sentence" };
        static const char *const ask[4] = { "Write the number in the sentence.",
            "Write the name of the person in the sentence.", "Write the city in the sentence.",
            "Write the verb of the sentence." };
        begin(names[task]);
        while (line_count < LINES) {
            const char *name = first_names[below(list_size(first_names))],
                       *place = places[below(list_size(places))], *verb = did[below(COUNT(did))];
            static const char *const things[] = { "books", "chairs", "apples", "boxes", "cups",
                "lamps", "bags", "stones" };
            const char *thing = things[below(COUNT(things))];
            const int n = 2 + below(97);
            char text[200], number[8];
            sprintf(number, "%d", n);
            if (below(2))
                sprintf(text, "%s %s %d %s in %s.", name, verb, n, thing, place);
            else
                sprintf(text, "In %s %s %s %d %s.", place, name, verb, n, thing);
            add("sentence", text, task == 0 ? number : task == 1 ? name : task == 2 ? place : verb);
        }
        end("extraction", "sentence", "exact_match", "", 0, task == 3 ? TEST : TRAIN, "%s",
            ask[task]);
    }
}

/* Facts from a table of rows: input column a, output column b. Rows go in one order for all tasks
 * of a table, so that a fact told from two sides keeps its side. */
static void make_facts(const char *name, const char *subcategory, const char *const *table,
    int rows, int columns, int a, int b, int memorization, int held, const char *instruction)
{
    int order[200], i;
    state = hash_text(subcategory) + 1;
    for (i = 0; i < rows; i++) order[i] = i;
    for (i = rows - 1; i > 0; i--) {
        const int j = below(i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    begin(name);
    for (i = 0; i < rows; i++) {
        const char *const *row = table + order[i] * columns;
        add(NULL, row[a], row[b]);
    }
    end("world_knowledge", subcategory, "exact_match", "", memorization, held, "%s", instruction);
}

#define FACTS(name, sub, table, a, b, memory, held, instruction) \
    make_facts(name, sub, &table[0][0], COUNT(table), (int)(sizeof table[0] / sizeof table[0][0]), \
        a, b, memory, held, instruction)

static void number_in_words(int n, char *out)
{
    if (n < 20)
        strcpy(out, number_words[n]);
    else if (n % 10)
        sprintf(out, "%s-%s", tens_words[n / 10], number_words[n % 10]);
    else
        strcpy(out, tens_words[n / 10]);
}

static void roman(int n, char *out)
{
    static const int values[] = { 100, 90, 50, 40, 10, 9, 5, 4, 1 };
    static const char *const signs[] = { "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I" };
    int i;
    for (*out = 0, i = 0; i < 9; i++)
        while (n >= values[i]) {
            strcat(out, signs[i]);
            n -= values[i];
        }
}

static void make_knowledge(void)
{
    int i, task;
    FACTS("capital_of_country", "capital", countries, 0, 1, 1, TRAIN,
        "What is the capital of the country?");
    FACTS("country_of_capital", "capital", countries, 1, 0, 1, TRAIN,
        "Of which country is the city the capital?");
    FACTS("continent_of_country", "country", countries, 0, 2, 1, TRAIN,
        "On which continent is the country?");
    FACTS("nationality_of_country", "nationality", countries, 0, 3, 0, TRAIN,
        "What is somebody from the country called?");
    FACTS("currency_of_country", "currency", countries, 0, 4, 1, TEST,
        "Which currency does the country use?");
    FACTS("language_of_country", "language", countries, 0, 5, 1, TRAIN,
        "Which language do most people in the country speak?");
    FACTS("continent_of_capital", "country", countries, 1, 2, 1, TEST,
        "On which continent is the city?");
    FACTS("symbol_of_element", "element", elements, 0, 1, 1, TRAIN,
        "What is the symbol of the chemical element?");
    FACTS("element_of_symbol", "element", elements, 1, 0, 1, TRAIN,
        "Which chemical element has the symbol?");
    FACTS("past_tense", "verb", verbs, 0, 1, 0, TRAIN, "Write the verb in the past tense.");
    FACTS("past_participle", "verb", verbs, 0, 2, 0, TRAIN,
        "Write the past participle of the verb.");
    FACTS("third_person", "verb", verbs, 0, 3, 0, TRAIN, "Write the verb for he or she.");
    FACTS("infinitive_of_past", "verb", verbs, 1, 0, 0, TEST,
        "Write the infinitive of the verb in the past tense.");
    FACTS("plural_of_noun", "noun", plurals, 0, 1, 0, TRAIN, "Write the plural of the noun.");
    FACTS("singular_of_noun", "noun", plurals, 1, 0, 0, TRAIN, "Write the singular of the noun.");
    FACTS("opposite", "opposite", opposites, 0, 1, 1, TRAIN, "Write the opposite of the word.");
    FACTS("young_of_animal", "young", young, 0, 1, 1, TRAIN,
        "What is the young of the animal called?");
    FACTS("english_to_spanish", "translation", translations, 0, 1, 1, TRAIN,
        "Translate the word from English to Spanish.");
    FACTS("english_to_french", "translation", translations, 0, 2, 1, TRAIN,
        "Translate the word from English to French.");
    FACTS("english_to_german", "translation", translations, 0, 3, 1, TRAIN,
        "Translate the word from English to German.");
    FACTS("spanish_to_english", "translation", translations, 1, 0, 1, TRAIN,
        "Translate the word from Spanish to English.");
    FACTS("german_to_english", "translation", translations, 3, 0, 1, TRAIN,
        "Translate the word from German to English.");
    FACTS("spanish_to_french", "translation", translations, 1, 2, 1, TEST,
        "Translate the word from Spanish to French.");
    for (task = 0; task < 4; task++) {
        static const char *const names[4] = { "number_to_words", "words_to_number",
            "number_to_roman", "roman_to_number" };
        static const char *const ask[4] = { "Write the number in words.",
            "Write the number in digits.", "Write the number in Roman numerals.",
            "Write the Roman numeral in digits." };
        int order[100];
        state = hash_text(task < 2 ? "words" : "roman") + 1;
        for (i = 0; i < 100; i++) order[i] = i;
        for (i = 99; i > 0; i--) {
            const int j = below(i + 1), t = order[i];
            order[i] = order[j];
            order[j] = t;
        }
        begin(names[task]);
        for (i = 0; i < 100; i++) {
            char digits[16], text[64];
            const int n = task < 2 ? order[i] : order[i] + 1;
            sprintf(digits, "%d", n);
            if (task < 2)
                number_in_words(n, text);
            else
                roman(n, text);
            add(NULL, task % 2 ? text : digits, task % 2 ? digits : text);
        }
        end("world_knowledge", "number", "exact_match", "", 0, task == 3 ? TEST : TRAIN, "%s",
            ask[task]);
    }
}

/* ---- splits ---------------------------------------------------------------------------------- */
typedef int part_rule(const task_info *task, int turn);

/* Compositions are held out, tasks of a new kind are in no part. */
static int zero_shot_part(const task_info *task, int turn)
{
    if (task->wheel >= 0) return composition_part(task->selection, task->wheel, turn);
    return task->held == TRAIN ? TRAIN : NOWHERE;
}

/* The same training tasks; two fifths of the compositions and all tasks of a new kind are held out.
 */
static int few_shot_part(const task_info *task, int turn)
{
    const int part = zero_shot_part(task, turn);
    if (task->wheel < 0) return task->held;
    if (part == TEST) return hash_text(task->name) % 5 < 2 ? TEST : NOWHERE;
    return part == TRAIN ? TRAIN : NOWHERE;
}

/* To choose models by: place 6 of the wheel, which no zero_shot split tests; what zero_shot tests is
 * in no part. */
static int development_part(const task_info *task, int turn)
{
    const int part = zero_shot_part(task, turn);
    if (task->wheel == 6) return TEST;
    return part == TRAIN ? TRAIN : NOWHERE;
}

/* The twelve transformations of a word. */
static int quickstart_part(const task_info *task, int turn)
{
    (void)turn;
    if (strcmp(task->category, "transformation") != 0) return NOWHERE;
    return strncmp(task->name, "word_", 5) == 0 ? TRAIN : NOWHERE;
}

static const struct {
    const char *name;
    part_rule *part;
    /* of the wheel: all turns whose TEST and DEV are not in the places 2 and 11, nor TEST in 6 */
    int turn;
} splits[] = { { "zero_shot", zero_shot_part, 0 }, { "zero_shot_2", zero_shot_part, 1 },
    { "zero_shot_3", zero_shot_part, 3 }, { "zero_shot_4", zero_shot_part, 4 },
    { "development", development_part, 0 }, { "few_shot", few_shot_part, 0 },
    { "quickstart", quickstart_part, 0 } };

static void write_split(int split)
{
    static const char *const parts[3] = { "train", "dev", "test" };
    char path[512];
    FILE *file;
    int part, i, n;
    snprintf(path, sizeof path, "%s/splits/%s.json", folder, splits[split].name);
    file = fopen(path, "wb");
    if (!file) {
        perror(path);
        exit(1);
    }
    fprintf(file, "{");
    for (part = TRAIN; part <= TEST; part++) {
        fprintf(file, "%s\n \"%s\": [", part ? "," : "", parts[part]);
        for (i = n = 0; i < task_count; i++)
            if (splits[split].part(&tasks[i], splits[split].turn) == part)
                fprintf(file, "%s\n  \"%s\"", n++ ? "," : "", tasks[i].name);
        fprintf(file, "\n ]");
    }
    fprintf(file, "\n}\n");
    if (fclose(file)) {
        perror(path);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    char path[512];
    FILE *file;
    int i;
    if (argc != 2) {
        fprintf(stderr, "usage: make_suite FOLDER (with tasks/ and splits/ inside)\n");
        return 2;
    }
    folder = argv[1];
    make_selections();
    make_transforms();
    make_compositions();
    make_classification();
    make_sentences();
    make_knowledge();
    snprintf(path, sizeof path, "%s/tasks.tsv", folder);
    file = fopen(path, "wb");
    if (!file) {
        perror(path);
        return 1;
    }
    fprintf(file, "name\tcategory\tsubcategory\tmetric\tn\tlabels\tinstruction\tmemorization\n");
    for (i = 0; i < task_count; i++)
        fprintf(file, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", tasks[i].name, tasks[i].category,
            tasks[i].subcategory, tasks[i].metric, tasks[i].lines, tasks[i].labels,
            tasks[i].instruction, tasks[i].memorization ? "yes" : "no");
    if (fclose(file)) {
        perror(path);
        return 1;
    }
    for (i = 0; i < COUNT(splits); i++) write_split(i);
    for (i = 0; i < used_count; i++) free(used[i]);
    return 0;
}
