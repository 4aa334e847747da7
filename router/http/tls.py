"""TLS of the HTTP door: a context that takes up new certificate files, and a new client authority, as they come.

An ssl.SSLContext can add trust but never take it back. So there is a new one for each set of files; the one that the
server was started with only hands each connection over to the latest, after the client's hello.
"""

import ssl

from engine.wire.tls import TlsFiles, Watch


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For a server that lives longer than its certificate. Raises InvalidRequest for files that cannot be used."""
    watch = Watch(files)
    first = latest = _context(files)
    due = False

    def hand_over(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context_: ssl.SSLContext) -> None:
        nonlocal latest, due
        due = watch.renewed() or due
        if due:
            latest, due = _context(files), False
        connection.context = latest

    first.sni_callback = hand_over  # OpenSSL calls it for hellos without a name, too
    return first


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["http/1.1"])
    # A resumed session would skip the certificates, and with them the rotation.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.ca is not None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # 1.2 resumes by session ids, too
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.ca)
    return context
