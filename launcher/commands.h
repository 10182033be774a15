/* The subcommands. Each takes the arguments behind its name and returns the exit code: 0 it did what was asked, 1 it
 * failed, 2 the command line was wrong and nothing was started. */
#ifndef TANDEM_LAUNCHER_COMMANDS_H
#define TANDEM_LAUNCHER_COMMANDS_H

int cmd_serve(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_config(int argc, char **argv);
int cmd_probe(int argc, char **argv);

/* Entry points of the children that serve and generate start; nobody calls them by hand. */
int cmd_worker(int argc, char **argv);
int cmd_frontend(int argc, char **argv);

#endif
