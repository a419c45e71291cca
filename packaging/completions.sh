#!/bin/sh
# Installs the completions of a command for three shells.
# Arguments: the program that prints them, the command's name, the old name that the program is to
# print them for (empty for its own), and the folder that is /usr/share.
set -eu
program=$1 name=$2 old_name=$3 share=$4

print() {
    "$program" completions "$1" ${old_name:+--for "$old_name"}
}
print bash >"$share/bash-completion/completions/$name"
print zsh >"$share/zsh/site-functions/_$name"
print fish >"$share/fish/vendor_completions.d/$name.fish"
