/*
 * What udisks does with bcache, through libblockdev's kbd plugin: `kbd BACKING CACHE MIDDLE` makes a
 * pair, looks at it, changes its mode, detaches it, runs the program MIDDLE, attaches it again and
 * takes it apart. Prints a line for each step; ends with 1 at the first that fails.
 *
 * There are no headers of libblockdev in Debian 13: what is used of 2.28 is declared here.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct error {
    uint32_t domain;
    int code;
    char *message;
};

struct stats {
    char *state;
    uint64_t block_size, cache_size, cache_used, hits, misses, bypass_hits, bypass_misses;
};

static void *plugin;

static void *function(const char *name) {
    void *found = dlsym(plugin, name);
    if (!found) {
        printf("%s\n", dlerror());
        exit(1);
    }
    return found;
}

static struct error *error;

static void check(const char *what, int good) {
    if (!good) {
        printf("%s failed: %s\n", what, error ? error->message : "no reason given");
        exit(1);
    }
}

int main(int count, char **arguments) {
    const char *bcache = NULL;
    char *set = NULL;
    /* What is printed is in order with what programs print that are run between. */
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 4)
        return 2;
    plugin = dlopen("libbd_kbd.so.2", RTLD_NOW);
    if (!plugin) {
        printf("%s\n", dlerror());
        return 1;
    }
    int (*create)(const char *, const char *, const void *, const char **, struct error **) =
        function("bd_kbd_bcache_create");
    struct stats *(*status)(const char *, struct error **) = function("bd_kbd_bcache_status");
    char *(*backing)(const char *, struct error **) = function("bd_kbd_bcache_get_backing_device");
    char *(*cache)(const char *, struct error **) = function("bd_kbd_bcache_get_cache_device");
    int (*mode)(const char *, struct error **) = function("bd_kbd_bcache_get_mode");
    const char *(*mode_words)(int, struct error **) = function("bd_kbd_bcache_get_mode_str");
    int (*set_mode)(const char *, int, struct error **) = function("bd_kbd_bcache_set_mode");
    int (*detach)(const char *, char **, struct error **) = function("bd_kbd_bcache_detach");
    int (*attach)(const char *, const char *, struct error **) = function("bd_kbd_bcache_attach");
    int (*destroy)(const char *, struct error **) = function("bd_kbd_bcache_destroy");

    check("create", create(arguments[1], arguments[2], NULL, &bcache, &error));
    printf("created %s\n", bcache);
    struct stats *found = status(bcache, &error);
    check("status", found != NULL);
    printf("state %s, block %llu, size %llu, used %llu\n", found->state,
           (unsigned long long)found->block_size, (unsigned long long)found->cache_size,
           (unsigned long long)found->cache_used);
    printf("on %s with %s\n", backing(bcache, &error), cache(bcache, &error));
    printf("mode %s\n", mode_words(mode(bcache, &error), &error));
    /* The modes in libblockdev's order: writethrough, writeback, writearound, none. */
    check("set_mode", set_mode(bcache, 1, &error));
    printf("mode %s\n", mode_words(mode(bcache, &error), &error));
    check("detach", detach(bcache, &set, &error));
    printf("detached from %s\n", set);
    check("the program in between", system(arguments[3]) == 0);
    check("attach", attach(set, bcache, &error));
    printf("attached\n");
    found = status(bcache, &error);
    check("status", found != NULL);
    printf("state %s\n", found->state);
    check("destroy", destroy(bcache, &error));
    printf("destroyed\n");
    return 0;
}
