/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opens IMAGE with everything below it as if blockmig had no rules about what a name in an image may lead to:
 *
 *   hostile-chain loose|confined IMAGE
 *
 * "confined": in the sandbox that blockmig makes for a look at IMAGE.  Prints what could be opened, the top
 * first; exit 0 if all of it could, 1 with the reason if not.
 */
#include "blockmig/storage/file.h"
#include "blockmig/storage/sandbox.h"
#include "formats/chain.h"
#include "formats/error.h"

#include <stdio.h>
#include <string.h>

static bool confine(const char *image, GError **error)
{
    g_autoptr(sandbox_t) sandbox = sandbox_new();

    sandbox_allow(sandbox, "/proc", SANDBOX_READ);
    sandbox_allow_image(sandbox, image, SANDBOX_READ);
    return sandbox_enter(sandbox, error);
}

static void print(const struct chain *chain)
{
    for (unsigned i = 0; i < chain_depth(chain); i++) {
        const struct image *image = chain_layer(chain, i);

        puts(image->storage->name);
        for (guint k = 0; k < image->data_files->len; k++)
            puts(image_data_file(image, k)->storage->name);
    }
}

int main(int argc, char **argv)
{
    static const char *const anywhere[] = {"/", NULL};
    const struct chain_policy policy = {.allowed_roots = anywhere, .open = storage_file_open_for_chain};
    g_autoptr(GError) error = NULL;
    g_autoptr(chain_t) chain = NULL;

    if (argc != 3)
        return 2;
    if (strcmp(argv[1], "loose") == 0 || confine(argv[2], &error))
        chain = chain_open(argv[2], NULL, &policy, &error);
    if (chain)
        print(chain);
    else
        fprintf(stderr, "%s\n", error->message);
    return chain ? 0 : 1;
}
