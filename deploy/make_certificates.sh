#!/bin/bash
# Makes certificates for a cluster: an authority of its own, and what that signs.
#
#   deploy/make_certificates.sh certs/cluster router worker
#   deploy/make_certificates.sh certs/clients client
#
# FOLDER/ca.pem and FOLDER/ca.key are made when they are not there; then, for each NAME,
# FOLDER/NAME.pem and FOLDER/NAME.key, or new ones in their place. A certificate serves both sides of
# a connection, and is valid for the DNS name NAME, for localhost and 127.0.0.1, and for what
# --names adds.
#
# Options:
#   --days N       how long the certificates are valid (default 365; the authority ten times that)
#   --names LIST   more names for every certificate, as openssl writes them:
#                  DNS:router.example,IP:10.0.0.7
#
# Whoever has ca.key can make certificates that the cluster trusts: keep it elsewhere.
set -euo pipefail

fail() {
  echo "make_certificates.sh: $*" >&2
  exit 1
}

days=365
names=
words=()
while (($# > 0)); do
  case "$1" in
    -h | --help)
      sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --days | --names)
      (($# > 1)) || fail "$1 takes a value"
      if [[ $1 == --days ]]; then days=$2; else names=,$2; fi
      shift
      ;;
    -*) fail "unknown option '$1' (see --help)" ;;
    *) words+=("$1") ;;
  esac
  shift
done
((${#words[@]} > 1)) || fail "give a folder and at least one name (see --help)"
[[ $days =~ ^[1-9][0-9]{0,4}$ ]] || fail "--days: '$days' is not a number of days"
command -v openssl > /dev/null || fail "openssl is missing: apt-get install openssl"
folder=${words[0]}
mkdir -p "$folder"
umask 077
work=$(mktemp -d "$folder/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT

# What openssl says is shown only when it fails.
run_openssl() {
  openssl "$@" 2> "$work/log" || fail "openssl $1 failed: $(< "$work/log")"
}

new_key() {
  run_openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

if [[ ! -e $folder/ca.pem && ! -e $folder/ca.key ]]; then
  new_key "$work/ca.key"
  run_openssl req -x509 -new -key "$work/ca.key" -days $((days * 10)) -subj "/CN=Baton authority" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$work/ca.pem"
  chmod 644 "$work/ca.pem"
  mv "$work/ca.key" "$work/ca.pem" "$folder/"
fi
[[ -e $folder/ca.pem && -e $folder/ca.key ]] || fail "$folder has only one of ca.pem and ca.key"

for name in "${words[@]:1}"; do
  [[ $name =~ ^[A-Za-z0-9.-]+$ && $name != ca ]] || fail "'$name' is not a name for a certificate"
  new_key "$work/$name.key"
  run_openssl req -new -key "$work/$name.key" -subj "/CN=$name" -out "$work/request"
  printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "extendedKeyUsage=serverAuth,clientAuth" \
    "subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1$names" > "$work/extensions"
  run_openssl x509 -req -in "$work/request" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$work/extensions" \
    -out "$work/$name.pem"
  chmod 644 "$work/$name.pem"
  mv "$work/$name.key" "$work/$name.pem" "$folder/"
  echo "$folder/$name.pem"
done
