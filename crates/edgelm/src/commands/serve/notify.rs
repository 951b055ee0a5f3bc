//! Words to systemd: when the server is ready, and that it ends (sd_notify(3)).

/// Says so, where the service manager asks for it with `NOTIFY_SOCKET`. It can do without: a failure is a warning.
pub fn service_manager(state: &str) {
    #[cfg(unix)]
    if let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty())
        && let Err(error) = send(&address, state)
    {
        tracing::warn!(error = &error as &dyn std::error::Error, state, "the service manager does not hear");
    }
    #[cfg(not(unix))]
    let _ = state;
}

#[cfg(unix)]
fn send(address: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::unix::{ffi::OsStrExt, net::UnixDatagram};
    let socket = UnixDatagram::unbound()?;
    // A name that begins with @ is no file.
    #[cfg(target_os = "linux")]
    if let Some(name) = address.as_bytes().strip_prefix(b"@") {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
        socket.send_to_addr(state.as_bytes(), &SocketAddr::from_abstract_name(name)?)?;
        return Ok(());
    }
    socket.send_to(state.as_bytes(), std::path::Path::new(address))?;
    Ok(())
}
