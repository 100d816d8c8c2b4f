#!/bin/sh
# Makes what a closed fleet needs under one folder: a CA, a certificate for each program, keys and tokens.
#   make-certs.sh FOLDER [NAME...]      NAMEs under which clients reach the gateway (default: gateway localhost)
# FOLDER/ca holds the CA's key; FOLDER/{gateway,edge,cloud,client,prometheus} what that program reads, no more.
# What exists is kept; a certificate that ends within 30 days, or lacks a NAME, is made anew.
set -eu
umask 077

out=${1:?usage: make-certs.sh FOLDER [NAME...]}
shift
[ $# -gt 0 ] || set -- gateway localhost
command -v openssl >/dev/null || { echo "openssl is missing: apt-get install openssl" >&2; exit 2; }
days=397
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out/ca" "$out/gateway" "$out/edge" "$out/cloud" "$out/client" "$out/prometheus"

secret() { # FILE: a random secret of 256 bits, once
    [ -s "$1" ] || { openssl rand -hex 32 > "$1.new" && mv "$1.new" "$1"; }
}

place() { # FROM TO: copies a file in one step, so that no reader sees half of it
    cp "$1" "$2.new" && mv "$2.new" "$2"
}

certificate() { # FOLDER COMMON_NAME USES NAME...: a certificate and key by the CA
    folder=$1 name=$2 uses=$3
    shift 3
    alternatives=
    for alternative in "$@"; do
        case $alternative in
            *[!0-9.]*) alternatives="$alternatives,DNS:$alternative" ;;
            *) alternatives="$alternatives,IP:$alternative" ;;
        esac
    done
    wanted="$name ${uses}$alternatives $(openssl x509 -in "$out/ca/ca.crt" -noout -fingerprint -sha256)"
    place "$out/ca/ca.crt" "$folder/ca.crt"
    if [ -s "$folder/tls.key" ] && [ "$(cat "$folder/.made-for" 2>/dev/null)" = "$wanted" ] &&
        openssl x509 -in "$folder/tls.crt" -noout -checkend 2592000 >/dev/null 2>&1; then
        return
    fi
    openssl ecparam -name prime256v1 -genkey -noout -out "$work/tls.key"
    openssl req -new -key "$work/tls.key" -subj "/O=tidegate/CN=$name" -out "$work/request"
    {
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=$uses"
        echo "subjectAltName=${alternatives#,}"
        echo "subjectKeyIdentifier=hash"
        echo "authorityKeyIdentifier=keyid"
    } > "$work/extensions"
    openssl x509 -req -in "$work/request" -CA "$out/ca/ca.crt" -CAkey "$out/ca/ca.key" -days "$days" -sha256 \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/extensions" -out "$work/tls.crt" 2>"$work/log" ||
        { cat "$work/log" >&2; exit 1; }
    place "$work/tls.key" "$folder/tls.key"
    place "$work/tls.crt" "$folder/tls.crt"
    printf '%s' "$wanted" > "$folder/.made-for"
    echo "made a certificate for $name"
}

if ! [ -s "$out/ca/ca.key" ] || ! [ -s "$out/ca/ca.crt" ]; then
    openssl ecparam -name prime256v1 -genkey -noout -out "$work/ca.key"
    openssl req -x509 -new -key "$work/ca.key" -days 3650 -sha256 -subj "/O=tidegate/CN=tidegate fleet CA" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -out "$work/ca.crt"
    place "$work/ca.key" "$out/ca/ca.key"
    place "$work/ca.crt" "$out/ca/ca.crt"
    echo "made a CA"
fi

certificate "$out/gateway" gateway serverAuth "$@" 127.0.0.1
certificate "$out/edge" edge "serverAuth,clientAuth" edge localhost 127.0.0.1
certificate "$out/cloud" cloud "serverAuth,clientAuth" cloud localhost 127.0.0.1

for name in api-key admin-key join-token-edge join-token-cloud fleet-secret; do secret "$out/gateway/$name"; done
secret "$out/edge/api-key"
secret "$out/edge/metrics-key"
place "$out/gateway/join-token-edge" "$out/edge/join-token"
place "$out/gateway/join-token-cloud" "$out/cloud/join-token"
place "$out/edge/metrics-key" "$out/cloud/metrics-key"
place "$out/gateway/api-key" "$out/client/api-key"
place "$out/gateway/admin-key" "$out/client/admin-key"
place "$out/edge/api-key" "$out/client/edge-api-key"
place "$out/ca/ca.crt" "$out/client/ca.crt"
place "$out/gateway/admin-key" "$out/prometheus/admin-key"
place "$out/edge/metrics-key" "$out/prometheus/metrics-key"
place "$out/ca/ca.crt" "$out/prometheus/ca.crt"
