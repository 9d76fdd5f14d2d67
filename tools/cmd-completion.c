/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* blockmig completion bash: a script made from the tables of commands and options. */
#include "formats/error.h"
#include "tools/command.h"

#include <string.h>

static void print_word(void *opaque, const char *spelling)
{
    printf(" %s", spelling);
}

static void print_bash(void)
{
    printf("# bash completion for blockmig, from its own tables: . <(blockmig completion bash)\n"
           "_blockmig()\n{\n"
           "    local word=${COMP_WORDS[COMP_CWORD]} words=\n"
           "    COMPREPLY=()\n"
           "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
           "        words=\"--help --version");
    for (const struct command *command = commands; command->name; command++)
        printf(" %s", command->name);
    printf("\"\n    elif [[ $word == -* ]]; then\n        case ${COMP_WORDS[1]} in\n");
    for (const struct command *command = commands; command->name; command++) {
        printf("        %s) words=\"", command->name);
        options_each(command->bit, print_word, NULL);
        printf("\" ;;\n");
    }
    printf("        esac\n"
           "    elif [ \"$COMP_CWORD\" -eq 2 ]; then\n"
           "        case ${COMP_WORDS[1]} in\n"
           "        job) words=\"list show resume cancel finish failback\" ;;\n"
           "        plan) words=\"copy move\" ;;\n"
           "        reservation) words=\"show take release\" ;;\n"
           "        completion) words=bash ;;\n"
           "        esac\n"
           "    fi\n"
           "    [ -n \"$words\" ] && mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n"
           "}\n"
           "complete -o default -F _blockmig blockmig\n");
}

int cmd_completion(const struct options *options, GError **error)
{
    if (!command_arguments(options, 1, 1, error))
        return 0;
    const char *shell = options->arguments->pdata[0];
    if (strcmp(shell, "bash") == 0)
        print_bash();
    else
        g_set_error(error, BLOCKMIG_ERROR, BLOCKMIG_ERROR_USAGE,
                    "completion: there is none for \"%s\"; known: bash", shell);
    return 0;
}
