"""Makes a token with an EC key pair in SoftHSM, or says which slot it is in: a token moves when it is made, so two programs.

Usage: ``python softhsm.py MODULE [slot]``, with ``SOFTHSM2_CONF`` set. The user's PIN is 1234, the key is called ``signing``.
"""

import sys

import PyKCS11

P256 = (0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07)


def make_token(library: PyKCS11.PyKCS11Lib) -> None:
    slot = library.getSlotList()[0]
    library.initToken(slot, "9999", "modelyard")
    session = library.openSession(slot, PyKCS11.CKF_SERIAL_SESSION | PyKCS11.CKF_RW_SESSION)
    session.login("9999", PyKCS11.CKU_SO)
    session.initPin("1234")
    session.logout()
    session.login("1234")
    common = [(PyKCS11.CKA_TOKEN, PyKCS11.CK_TRUE), (PyKCS11.CKA_LABEL, "signing"), (PyKCS11.CKA_ID, (1,))]
    public = [*common, (PyKCS11.CKA_EC_PARAMS, P256), (PyKCS11.CKA_VERIFY, PyKCS11.CK_TRUE)]
    private = [*common, (PyKCS11.CKA_SIGN, PyKCS11.CK_TRUE), (PyKCS11.CKA_SENSITIVE, PyKCS11.CK_TRUE)]
    session.generateKeyPair(public, private, mecha=PyKCS11.MechanismECGENERATEKEYPAIR)


if __name__ == "__main__":
    module = PyKCS11.PyKCS11Lib()
    module.load(sys.argv[1])
    if sys.argv[2:] == ["slot"]:
        print(module.getSlotList()[0])
    else:
        make_token(module)
