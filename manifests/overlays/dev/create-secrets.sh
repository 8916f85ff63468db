#!/bin/sh
# Prints the dev overlay's secrets, made of fresh random keys; nothing is kept:
#   ./create-secrets.sh | kubectl apply -f -
# Once only: vectors sealed under an old custody key open under no other.
set -eu
umask 077
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
openssl genpkey -algorithm ed25519 -out "$folder/signing.pem"
openssl pkey -in "$folder/signing.pem" -pubout -out "$folder/signing.pem.pub"
openssl genpkey -algorithm ed25519 -out "$folder/provenance.pem"
openssl rand -base64 32 >"$folder/custody.key"
openssl rand -hex 24 | tr -d '\n' >"$folder/password"
openssl rand -hex 10 | tr -d '\n' >"$folder/AWS_ACCESS_KEY_ID"
openssl rand -hex 20 | tr -d '\n' >"$folder/AWS_SECRET_ACCESS_KEY"

# name file...
secret() {
  name=$1
  shift
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: secvec\ntype: Opaque\ndata:\n' "$name"
  for file; do
    printf '  %s: %s\n' "$file" "$(openssl base64 -A -in "$folder/$file")"
  done
}

secret secvec-custody custody.key
secret secvec-signing signing.pem signing.pem.pub provenance.pem
secret secvec-s3 AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
secret mlflow-database password
