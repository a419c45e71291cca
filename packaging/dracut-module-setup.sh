#!/bin/bash
# What registers bcache devices, for an initramfs made by dracut.

check() {
    local fs
    # For this machine alone: only where it has bcache devices that are needed.
    if [[ $hostonly ]] || [[ $mount_needs ]]; then
        for fs in "${host_fs_types[@]}"; do
            [[ $fs == bcache ]] && return 0
        done
        return 255
    fi
    return 0
}

depends() {
    return 0
}

installkernel() {
    instmods bcache
}

install() {
    inst_multiple "${udevdir}/bcache-register" "${udevdir}/bcache-export-cached" \
        "${udevdir}/probe-bcache"
    inst_rules 69-bcache.rules
}
